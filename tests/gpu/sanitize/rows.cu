// SPDX-License-Identifier: Apache-2.0
// grouped_row_scale and grouped_row_dot against an fp64 reference.
#include <cmath>

#include "harness.h"

namespace sanitize {
namespace {

struct RowCase {
  Groups groups;
  int dtype = GROUPED_F32;
  int64_t K = 0;
  uint64_t flags = 0;

  bool flag(int i) const { return flags >> i & 1; }
  int pick(int i) const { return flag(i) ? accumulator_of(dtype) : dtype; }
  int64_t S() const { return groups.offsets().back(); }
  std::string name(const char* op) const {
    return std::string(op) + " " + name_of(dtype) + " K=" + std::to_string(K) + " " + groups.name +
           " flags " + std::to_string(flags & 31);
  }
};

Array make(int dtype, std::vector<int64_t> shape, int64_t valid, std::mt19937_64& rng) {
  Array a(dtype, std::move(shape));
  a.randomize(rng, 0, valid);
  return a;
}

void check_row_scale(Report& report, const RowCase& c, std::mt19937_64& rng) {
  const int64_t T = c.groups.T, S = c.S();
  const Array x = make(c.pick(0), {T, c.K}, S * c.K, rng);
  const Array scale = make(c.pick(1), {T}, S, rng);
  const Array initial(c.dtype, {T, c.K});
  Call call(report);
  grouped_row_scale_args args{};
  args.struct_size = sizeof(args);
  args.x = call.input("x", x);
  args.group_sizes = call.input("group_sizes", c.groups.array());
  args.row_scale = call.input("row_scale", scale);
  args.out = call.output("out", initial);
  args.sizes_kind = c.groups.are_ends ? GROUPED_ENDS : GROUPED_SIZES;
  args.tail = c.flag(2) ? GROUPED_TAIL_ZERO : GROUPED_TAIL_KEEP;
  if (!call.run(GROUPED_OP_ROW_SCALE, x.dtype, c.K, 0, c.groups.G(),
                [&](const grouped_launch* l, grouped_status* s) { return grouped_row_scale(&args, l, s); })) {
    return;
  }
  std::vector<double> reference(initial.count()), slack(initial.count());
  for (int64_t i = 0; i < S * c.K; ++i) {
    reference[i] = x.get(i) * scale.get(i / c.K);
    slack[i] = accumulator_epsilon(c.dtype) * std::fabs(reference[i]);
  }
  expect_close(report, "out", call.result(0), 0, S * c.K, reference, slack);
  expect_tail(report, call.result(0), initial, S * c.K, c.flag(2));
}

void check_row_dot(Report& report, const RowCase& c, std::mt19937_64& rng) {
  const int64_t T = c.groups.T, S = c.S(), G = c.groups.G();
  const int64_t N = c.flag(4) ? 24 : 7;
  const bool has_bias = c.flag(3);
  const Array a = make(c.dtype, {T, c.K}, S * c.K, rng);
  const Array b = make(c.pick(0), {T, c.K}, S * c.K, rng);
  const Array dy = make(c.dtype, {T, N}, S * N, rng);
  const Array bias = make(c.pick(1), {G, N}, G * N, rng);
  const Array initial(c.pick(4), {T});
  Call call(report);
  grouped_row_dot_args args{};
  args.struct_size = sizeof(args);
  args.a = call.input("a", a);
  args.b = call.input("b", b);
  args.group_sizes = call.input("group_sizes", c.groups.array());
  args.dy = has_bias ? call.input("dy", dy) : nullptr;
  args.bias = has_bias ? call.input("bias", bias) : nullptr;
  args.out = call.output("out", initial);
  args.sizes_kind = c.groups.are_ends ? GROUPED_ENDS : GROUPED_SIZES;
  args.tail = c.flag(2) ? GROUPED_TAIL_ZERO : GROUPED_TAIL_KEEP;
  if (!call.run(GROUPED_OP_ROW_DOT, c.dtype, c.K, N, G,
                [&](const grouped_launch* l, grouped_status* s) { return grouped_row_dot(&args, l, s); })) {
    return;
  }
  const std::vector<int64_t> offsets = c.groups.offsets();
  std::vector<double> reference(T), slack(T);
  for (int64_t g = 0; g < G; ++g) {
    for (int64_t t = offsets[g]; t < offsets[g + 1]; ++t) {
      double sum = 0, size = 0;
      const auto accumulate = [&](double product) {
        sum += product;
        size += std::fabs(product);
      };
      for (int64_t k = 0; k < c.K; ++k) accumulate(a.get(t * c.K + k) * b.get(t * c.K + k));
      for (int64_t n = 0; has_bias && n < N; ++n) accumulate(dy.get(t * N + n) * bias.get(g * N + n));
      reference[t] = sum;
      slack[t] = 4 * accumulator_epsilon(c.dtype) * std::sqrt(c.K + N) * size;
    }
  }
  expect_close(report, "out", call.result(0), 0, S, reference, slack);
  expect_tail(report, call.result(0), initial, S, c.flag(2));
}

}  // namespace

void row_suite(Report& report, bool quick) {
  const std::vector<int64_t> lengths =
      quick ? std::vector<int64_t>{40, 33} : std::vector<int64_t>{40, 33, 1, 0, 300};
  report.begin_suite("row_scale and row_dot");
  std::mt19937_64 rng(5);
  for (int dtype : kDTypes) {
    for (const Groups& groups : group_cases(quick)) {
      for (int64_t K : lengths) {
        const RowCase c{groups, dtype, K, rng()};
        report.begin_case(c.name("row_scale"));
        check_row_scale(report, c, rng);
        report.end_case();
        report.begin_case(c.name("row_dot"));
        check_row_dot(report, c, rng);
        report.end_case();
      }
    }
  }
  report.end_suite();
}

}  // namespace sanitize
