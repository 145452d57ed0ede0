// SPDX-License-Identifier: Apache-2.0
// grouped_wgrad and grouped_bias_grad: against an fp64 reference, overwriting and accumulating, both storages
// to the same bits.
#include <algorithm>
#include <cmath>

#include "harness.h"

namespace sanitize {
namespace {

struct GradCase {
  Groups groups;
  int dtype = GROUPED_F32;
  int64_t K = 0, N = 0;
  bool wide_out = false, accumulate = false;

  std::string name() const {
    return std::string(name_of(dtype)) + " K=" + std::to_string(K) + " N=" + std::to_string(N) + " " +
           groups.name + (wide_out ? " wide out" : "") + (accumulate ? " accumulate" : "");
  }
  int out_dtype() const { return wide_out ? accumulator_of(dtype) : dtype; }
};

// Rows of groups random, the tail NaN.
Array make_rows(const GradCase& c, int64_t columns, std::mt19937_64& rng) {
  Array rows(c.dtype, {c.groups.T, columns});
  rows.randomize(rng, 0, c.groups.offsets().back() * columns);
  return rows;
}

// NaN to be overwritten, or numbers to be added to.
Array make_target(const GradCase& c, std::vector<int64_t> shape, std::mt19937_64& rng) {
  Array target(c.out_dtype(), std::move(shape));
  if (c.accumulate) target.randomize(rng);
  return target;
}

Array transposed(const Array& a) {
  const int64_t G = a.shape[0], rows = a.shape[1], columns = a.shape[2];
  const int64_t size = size_of(a.dtype);
  Array out(a.dtype, {G, columns, rows});
  for (int64_t g = 0; g < G; ++g) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        std::copy_n(a.bytes.begin() + ((g * rows + r) * columns + c) * size, size,
                    out.bytes.begin() + ((g * columns + c) * rows + r) * size);
      }
    }
  }
  return out;
}

// An empty group: zeros, or to the bit what was there.
void check_empty_group(Report& report, const GradCase& c, const Array& result, const Array& initial,
                       int64_t begin, int64_t end) {
  Array expected = initial;
  if (!c.accumulate) expected.bytes.assign(expected.bytes.size(), 0);
  expect_same_bytes(report, "empty group", result, expected, begin, end);
}

bool run_wgrad(Report& report, const GradCase& c, const Array& x, const Array& dy, const Array& initial,
               int layout, Array* result) {
  Call call(report);
  grouped_wgrad_args args{};
  args.struct_size = sizeof(args);
  args.x = call.input("x", x);
  args.dy = call.input("dy", dy);
  args.group_sizes = call.input("group_sizes", c.groups.array());
  args.out = call.output("out", initial);
  args.weight_layout = layout;
  args.sizes_kind = c.groups.are_ends ? GROUPED_ENDS : GROUPED_SIZES;
  args.accumulate = c.accumulate;
  if (!call.run(GROUPED_OP_WGRAD, c.dtype, c.K, c.N, c.groups.G(),
                [&](const grouped_launch* l, grouped_status* s) { return grouped_wgrad(&args, l, s); })) {
    return false;
  }
  *result = call.result(0);
  return true;
}

void check_wgrad(Report& report, const GradCase& c, const Array& x, const Array& dy, const Array& initial,
                 const Array& result) {
  const std::vector<int64_t> offsets = c.groups.offsets();
  const double epsilon = accumulator_epsilon(c.dtype);
  std::vector<double> reference(result.count()), slack(result.count());
  for (int64_t g = 0; g < c.groups.G(); ++g) {
    const int64_t begin = g * c.N * c.K, end = begin + c.N * c.K;
    const int64_t rows = offsets[g + 1] - offsets[g];
    if (rows == 0) {
      check_empty_group(report, c, result, initial, begin, end);
      continue;
    }
    std::vector<double> sum(c.N * c.K), size(c.N * c.K);
    for (int64_t t = offsets[g]; t < offsets[g + 1]; ++t) {
      for (int64_t n = 0; n < c.N; ++n) {
        const double d = dy.get(t * c.N + n);
        for (int64_t k = 0; k < c.K; ++k) {
          const double product = d * x.get(t * c.K + k);
          sum[n * c.K + k] += product;
          size[n * c.K + k] += std::fabs(product);
        }
      }
    }
    for (int64_t i = begin; i < end; ++i) {
      const double old = c.accumulate ? initial.get(i) : 0;
      reference[i] = old + sum[i - begin];
      slack[i] = 4 * epsilon * (std::sqrt(rows) + 1) * (size[i - begin] + std::fabs(old));
    }
    expect_close(report, "out", result, begin, end, reference, slack);
  }
}

void check_bias_grad(Report& report, const GradCase& c, const Array& dy, const Array& initial) {
  Call call(report);
  grouped_bias_grad_args args{};
  args.struct_size = sizeof(args);
  args.dy = call.input("dy", dy);
  args.group_sizes = call.input("group_sizes", c.groups.array());
  args.out = call.output("out", initial);
  args.sizes_kind = c.groups.are_ends ? GROUPED_ENDS : GROUPED_SIZES;
  args.accumulate = c.accumulate;
  if (!call.run(GROUPED_OP_BIAS_GRAD, c.dtype, 0, c.N, c.groups.G(),
                [&](const grouped_launch* l, grouped_status* s) { return grouped_bias_grad(&args, l, s); })) {
    return;
  }
  const Array& result = call.result(0);
  const std::vector<int64_t> offsets = c.groups.offsets();
  std::vector<double> reference(result.count()), slack(result.count());
  for (int64_t g = 0; g < c.groups.G(); ++g) {
    const int64_t rows = offsets[g + 1] - offsets[g];
    if (rows == 0) {
      check_empty_group(report, c, result, initial, g * c.N, (g + 1) * c.N);
      continue;
    }
    for (int64_t n = 0; n < c.N; ++n) {
      double sum = c.accumulate ? initial.get(g * c.N + n) : 0;
      double size = std::fabs(sum);
      for (int64_t t = offsets[g]; t < offsets[g + 1]; ++t) {
        sum += dy.get(t * c.N + n);
        size += std::fabs(dy.get(t * c.N + n));
      }
      reference[g * c.N + n] = sum;
      slack[g * c.N + n] = 4 * accumulator_epsilon(c.dtype) * (std::sqrt(rows) + 1) * size;
    }
    expect_close(report, "out", result, g * c.N, (g + 1) * c.N, reference, slack);
  }
}

template <typename Body>
void for_each_case(bool quick, std::mt19937_64& rng, Body&& body) {
  struct Shape {
    int64_t K, N;
  };
  // Those of multiples of 64 can be sent in whole lines.
  const std::vector<Shape> shapes =
      quick ? std::vector<Shape>{{40, 136}, {264, 136}, {33, 17}, {64, 320}}
            : std::vector<Shape>{{40, 136}, {33, 17},  {1, 1},     {0, 5},    {5, 0},
                                 {136, 72}, {130, 67}, {264, 520}, {64, 128}, {192, 320}};
  for (int dtype : kDTypes) {
    for (const Groups& groups : group_cases(quick)) {
      for (const Shape& shape : shapes) {
        if (groups.G() > 32 && shape.K * shape.N > (groups.G() > 100 ? 33 * 17 : 40 * 136)) continue;
        if (groups.T > 1000 && shape.K * shape.N > 20000) continue;
        const uint64_t flags = rng();
        GradCase c{groups, dtype, shape.K, shape.N};
        c.wide_out = flags & 1;
        c.accumulate = flags & 2;
        body(c);
      }
    }
  }
}

}  // namespace

void wgrad_suite(Report& report, bool quick) {
  report.begin_suite("wgrad");
  std::mt19937_64 rng(2);
  for_each_case(quick, rng, [&](const GradCase& c) {
    report.begin_case(c.name());
    const Array x = make_rows(c, c.K, rng);
    const Array dy = make_rows(c, c.N, rng);
    const Array initial = make_target(c, {c.groups.G(), c.N, c.K}, rng);
    Array gnk, gkn;
    if (run_wgrad(report, c, x, dy, initial, GROUPED_GNK, &gnk) &&
        run_wgrad(report, c, x, dy, transposed(initial), GROUPED_GKN, &gkn)) {
      check_wgrad(report, c, x, dy, initial, gnk);
      expect_same_bytes(report, "storages", gnk, transposed(gkn), 0, gnk.count());
    }
    report.end_case();
  });
  report.end_suite();
}

void bias_grad_suite(Report& report, bool quick) {
  report.begin_suite("bias_grad");
  std::mt19937_64 rng(3);
  for_each_case(quick, rng, [&](const GradCase& c) {
    report.begin_case(c.name());
    check_bias_grad(report, c, make_rows(c, c.N, rng), make_target(c, {c.groups.G(), c.N}, rng));
    report.end_case();
  });
  report.end_suite();
}

}  // namespace sanitize
