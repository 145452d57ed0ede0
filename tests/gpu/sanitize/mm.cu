// SPDX-License-Identifier: Apache-2.0
// grouped_mm: against an fp64 reference, both storages to the same bits, and bits that ignore alignment and
// place.
#include <algorithm>
#include <cmath>

#include "harness.h"

namespace sanitize {
namespace {

struct MmCase {
  Groups groups;
  int dtype = GROUPED_F32;
  int64_t K = 0, N = 0;
  bool has_bias = false, has_scale = false, wide_bias = false, wide_scale = false, wide_out = false,
       zero_tail = false;

  std::string name() const {
    return std::string(name_of(dtype)) + " K=" + std::to_string(K) + " N=" + std::to_string(N) + " " +
           groups.name + (has_bias ? " bias" : "") + (has_scale ? " scale" : "") +
           (wide_out ? " wide out" : "") + (zero_tail ? " zero tail" : "");
  }
};

struct MmData {
  Array x, weight /* [G,N,K] */, bias, row_scale, initial;
};

// NaN in the tail of x and row_scale, in what belongs to empty groups, and in all of out.
MmData make_data(const MmCase& c, std::mt19937_64& rng) {
  const std::vector<int64_t> offsets = c.groups.offsets();
  const int64_t G = c.groups.G();
  const int wide = accumulator_of(c.dtype);
  MmData d;
  d.x = Array(c.dtype, {c.groups.T, c.K});
  d.weight = Array(c.dtype, {G, c.N, c.K});
  d.bias = Array(c.wide_bias ? wide : c.dtype, {G, c.N});
  d.row_scale = Array(c.wide_scale ? wide : c.dtype, {c.groups.T});
  d.initial = Array(c.wide_out ? wide : c.dtype, {c.groups.T, c.N});
  d.x.randomize(rng, 0, offsets[G] * c.K);
  d.row_scale.randomize(rng, 0, offsets[G]);
  for (int64_t g = 0; g < G; ++g) {
    if (offsets[g] == offsets[g + 1]) continue;
    d.weight.randomize(rng, g * c.N * c.K, (g + 1) * c.N * c.K);
    d.bias.randomize(rng, g * c.N, (g + 1) * c.N);
  }
  return d;
}

Array transposed(const Array& weight) {
  const int64_t G = weight.shape[0], N = weight.shape[1], K = weight.shape[2];
  Array out(weight.dtype, {G, K, N});
  const int64_t size = size_of(weight.dtype);
  for (int64_t g = 0; g < G; ++g) {
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = 0; k < K; ++k) {
        std::copy_n(weight.bytes.begin() + ((g * N + n) * K + k) * size, size,
                    out.bytes.begin() + ((g * K + k) * N + n) * size);
      }
    }
  }
  return out;
}

bool run_mm(Report& report, const MmCase& c, const MmData& d, int layout, Array* result) {
  Call call(report);
  grouped_mm_args args{};
  args.struct_size = sizeof(args);
  args.x = call.input("x", d.x);
  args.weight = call.input("weight", layout == GROUPED_GNK ? d.weight : transposed(d.weight));
  args.group_sizes = call.input("group_sizes", c.groups.array());
  args.bias = c.has_bias ? call.input("bias", d.bias) : nullptr;
  args.row_scale = c.has_scale ? call.input("row_scale", d.row_scale) : nullptr;
  args.out = call.output("out", d.initial);
  args.weight_layout = layout;
  args.sizes_kind = c.groups.are_ends ? GROUPED_ENDS : GROUPED_SIZES;
  args.tail = c.zero_tail ? GROUPED_TAIL_ZERO : GROUPED_TAIL_KEEP;
  if (!call.run(GROUPED_OP_MM, c.dtype, c.K, c.N, c.groups.G(),
                [&](const grouped_launch* l, grouped_status* s) { return grouped_mm(&args, l, s); })) {
    return false;
  }
  *result = call.result(0);
  return true;
}

void check_against_reference(Report& report, const MmCase& c, const MmData& d, const Array& result) {
  const std::vector<int64_t> offsets = c.groups.offsets();
  const int64_t S = offsets.back();
  std::vector<double> reference(result.count()), slack(result.count());
  const double epsilon = accumulator_epsilon(c.dtype);
  std::vector<double> x(d.x.count()), weight(d.weight.count());
  for (size_t i = 0; i < x.size(); ++i) x[i] = d.x.get(i);
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = d.weight.get(i);
  for (int64_t g = 0; g < c.groups.G(); ++g) {
    for (int64_t t = offsets[g]; t < offsets[g + 1]; ++t) {
      const double scale = c.has_scale ? d.row_scale.get(t) : 1;
      for (int64_t n = 0; n < c.N; ++n) {
        const double bias = c.has_bias ? d.bias.get(g * c.N + n) : 0;
        long double sum = 0;
        double size = 0;
        for (int64_t k = 0; k < c.K; ++k) {
          const double product = x[t * c.K + k] * weight[(g * c.N + n) * c.K + k];
          sum += product;
          size += std::fabs(product);
        }
        reference[t * c.N + n] = static_cast<double>((sum + bias) * scale);
        // The bias and the scale round once each, whatever K is.
        slack[t * c.N + n] = 4 * epsilon * (std::sqrt(c.K) + 1) * (size + std::fabs(bias)) * std::fabs(scale);
      }
    }
  }
  expect_close(report, "out", result, 0, S * c.N, reference, slack);
  expect_tail(report, result, d.initial, S * c.N, c.zero_tail);
}

// One column less makes rows of a [G,K,N] weight unaligned; the columns that stay keep their bits. Not where
// whole 16-byte rows of 16-bit elements are another family of kernels.
void check_alignment(Report& report, const MmCase& c, const MmData& d, const Array& result) {
  if (c.N < 2 || (is_16bit(c.dtype) && c.K % 8 == 0 && c.N % 8 == 0)) return;
  MmCase fewer = c;
  fewer.N = c.N - 1;
  MmData e = d;
  e.weight = Array(d.weight.dtype, {c.groups.G(), fewer.N, c.K});
  e.bias = Array(d.bias.dtype, {c.groups.G(), fewer.N});
  e.initial = Array(d.initial.dtype, {c.groups.T, fewer.N});
  for (int64_t g = 0; g < c.groups.G(); ++g) {
    for (int64_t n = 0; n < fewer.N; ++n) {
      e.bias.set(g * fewer.N + n, d.bias.get(g * c.N + n));
      for (int64_t k = 0; k < c.K; ++k)
        e.weight.set((g * fewer.N + n) * c.K + k, d.weight.get((g * c.N + n) * c.K + k));
    }
  }
  Array other;
  if (!run_mm(report, fewer, e, GROUPED_GKN, &other)) return;
  const int64_t S = c.groups.offsets().back();
  Array expected = e.initial;
  const int64_t size = size_of(result.dtype);
  for (int64_t t = 0; t < c.groups.T; ++t) {
    std::copy_n(result.bytes.begin() + t * c.N * size, fewer.N * size,
                expected.bytes.begin() + t * fewer.N * size);
  }
  expect_same_bytes(report, "with a column less", expected, other, 0, S * fewer.N);
}

// Each group alone in a call of its own keeps its bits.
void check_place(Report& report, const MmCase& c, const MmData& d, const Array& result) {
  const std::vector<int64_t> offsets = c.groups.offsets();
  int tried = 0;
  for (int64_t g = 0; g < c.groups.G() && tried < 2; ++g) {
    const int64_t rows = offsets[g + 1] - offsets[g];
    if (rows == 0 || offsets[g] == 0) continue;
    ++tried;
    MmCase alone = c;
    alone.groups = Groups{"alone", {rows}, rows, true, false};
    const auto cut = [](const Array& a, int64_t first, int64_t count, std::vector<int64_t> shape) {
      Array out(a.dtype, std::move(shape));
      std::copy_n(a.bytes.begin() + first * size_of(a.dtype), count * size_of(a.dtype), out.bytes.begin());
      return out;
    };
    MmData e;
    e.x = cut(d.x, offsets[g] * c.K, rows * c.K, {rows, c.K});
    e.weight = cut(d.weight, g * c.N * c.K, c.N * c.K, {1, c.N, c.K});
    e.bias = cut(d.bias, g * c.N, c.N, {1, c.N});
    e.row_scale = cut(d.row_scale, offsets[g], rows, {rows});
    e.initial = Array(d.initial.dtype, {rows, c.N});
    Array other;
    if (!run_mm(report, alone, e, GROUPED_GNK, &other)) return;
    expect_same_bytes(report, "alone", cut(result, offsets[g] * c.N, rows * c.N, {rows, c.N}), other, 0,
                      rows * c.N);
  }
}

}  // namespace

void mm_suite(Report& report, bool quick) {
  struct Shape {
    int64_t K, N;
  };
  const std::vector<Shape> shapes =
      quick ? std::vector<Shape>{{40, 136}, {136, 264}, {33, 17}}
            : std::vector<Shape>{{40, 136}, {33, 17},   {1, 1},    {0, 5},    {5, 0},
                                 {256, 72}, {130, 200}, {72, 265}, {392, 520}};
  report.begin_suite("mm");
  std::mt19937_64 rng(1);
  for (int dtype : kDTypes) {
    for (const Groups& groups : group_cases(quick)) {
      for (const Shape& shape : shapes) {
        if (groups.G() > 32 && shape.K * shape.N > 40 * 136) continue;
        if (groups.T > 1000 && shape.K * shape.N > 20000) continue;
        const uint64_t flags = rng();
        MmCase c{groups, dtype, shape.K, shape.N};
        c.has_bias = flags & 1;
        c.has_scale = flags & 2;
        c.wide_bias = flags & 4;
        c.wide_scale = flags & 8;
        c.wide_out = flags & 16;
        c.zero_tail = flags & 32;
        report.begin_case(c.name());
        const MmData data = make_data(c, rng);
        Array gnk, gkn;
        if (run_mm(report, c, data, GROUPED_GNK, &gnk) && run_mm(report, c, data, GROUPED_GKN, &gkn)) {
          check_against_reference(report, c, data, gnk);
          expect_same_bytes(report, "storages", gnk, gkn, 0, gnk.count());
          if (groups.G() < 100) {
            check_alignment(report, c, data, gnk);
            check_place(report, c, data, gnk);
          }
        }
        report.end_case();
      }
    }
  }
  report.end_suite();
}

}  // namespace sanitize
