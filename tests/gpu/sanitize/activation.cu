// SPDX-License-Identifier: Apache-2.0
// grouped_activation and grouped_activation_grad against the formulas in fp64, with the C library's exp and
// tanh.
#include <algorithm>
#include <cmath>

#include "harness.h"

namespace sanitize {
namespace {

constexpr double kAlpha = 1.702, kLimit = 2.5, kOffset = 1.0;

struct ActivationCase {
  Groups groups;
  int dtype = GROUPED_F32;
  int64_t F = 0;
  int kind = GROUPED_SWIGLU;
  bool interleaved = false, has_scale = false, wide_scale = false, zero_tail = false;

  bool gated() const { return kind != GROUPED_SQUARED_RELU; }
  int64_t H() const { return gated() ? 2 * F : F; }
  int64_t gate_at(int64_t f) const { return gated() && interleaved ? 2 * f : f; }
  int64_t up_at(int64_t f) const { return interleaved ? 2 * f + 1 : F + f; }
  int scale_dtype() const { return wide_scale ? accumulator_of(dtype) : dtype; }
  grouped_activation_options options() const {
    return {kind, interleaved ? GROUPED_INTERLEAVED : GROUPED_CONCATENATED, kAlpha, kLimit, kOffset};
  }
  std::string name(const char* op) const {
    return std::string(op) + " " + name_of(dtype) + " kind " + std::to_string(kind) +
           " F=" + std::to_string(F) + " " + groups.name + (interleaved ? " interleaved" : "") +
           (has_scale ? " scale" : "") + (zero_tail ? " zero tail" : "");
  }
};

struct Gradient {
  double value, d_gate, d_up;
  double size;  // of what is added and subtracted on the way: errors are relative to this
};

Gradient reference_of(int kind, double gate, double up, double alpha, double limit, double offset) {
  const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
  const double size = (1 + gate * gate) * (1 + std::fabs(up) + std::fabs(offset));
  switch (kind) {
    case GROUPED_SWIGLU: {
      const double s = sigmoid(gate);
      return {gate * s * up, up * s * (1 + gate * (1 - s)), gate * s, size};
    }
    case GROUPED_CLAMPED_SWIGLU: {
      const double g = std::min(gate, limit), u = std::min(std::max(up, -limit), limit) + offset;
      const double s = sigmoid(alpha * g);
      return {g * s * u, gate > limit ? 0 : u * s * (1 + alpha * g * (1 - s)),
              std::fabs(up) > limit ? 0 : g * s, size};
    }
    case GROUPED_GEGLU: {
      const double c = std::sqrt(2 / M_PI), th = std::tanh(c * (gate + 0.044715 * gate * gate * gate));
      const double gelu = 0.5 * gate * (1 + th);
      const double d = 0.5 * (1 + th) + 0.5 * gate * (1 - th * th) * c * (1 + 3 * 0.044715 * gate * gate);
      return {gelu * up, d * up, gelu, size * (1 + gate * gate)};
    }
    default: {
      const double r = std::max(gate, 0.0);
      return {r * r, 2 * r, 0, size};
    }
  }
}

Gradient at(const ActivationCase& c, const Array& h, int64_t t, int64_t f) {
  const double gate = h.get(t * c.H() + c.gate_at(f));
  const double up = c.gated() ? h.get(t * c.H() + c.up_at(f)) : 0;
  // The options enter in accumulator precision.
  const bool is_double = c.dtype == GROUPED_F64;
  return reference_of(c.kind, gate, up, is_double ? kAlpha : static_cast<float>(kAlpha), kLimit, kOffset);
}

// Random rows, four times as wide as the limits so that every branch is met; NaN in the tail.
Array make_h(const ActivationCase& c, std::mt19937_64& rng) {
  Array h(c.dtype, {c.groups.T, c.H()});
  const int64_t valid = c.groups.offsets().back() * c.H();
  h.randomize(rng, 0, valid);
  for (int64_t i = 0; i < valid; ++i) h.set(i, 4 * h.get(i));
  return h;
}

void check_forward(Report& report, const ActivationCase& c, std::mt19937_64& rng) {
  const int64_t T = c.groups.T, S = c.groups.offsets().back();
  const Array h = make_h(c, rng);
  Array scale(c.scale_dtype(), {T});
  scale.randomize(rng, 0, S);
  const Array initial(c.dtype, {T, c.F});
  Call call(report);
  grouped_activation_args args{};
  args.struct_size = sizeof(args);
  args.h = call.input("h", h);
  args.group_sizes = call.input("group_sizes", c.groups.array());
  args.row_scale = c.has_scale ? call.input("row_scale", scale) : nullptr;
  args.out = call.output("out", initial);
  args.options = c.options();
  args.sizes_kind = c.groups.are_ends ? GROUPED_ENDS : GROUPED_SIZES;
  args.tail = c.zero_tail ? GROUPED_TAIL_ZERO : GROUPED_TAIL_KEEP;
  if (!call.run(
          GROUPED_OP_ACTIVATION, c.dtype, c.H(), c.F, c.groups.G(),
          [&](const grouped_launch* l, grouped_status* s) { return grouped_activation(&args, l, s); })) {
    return;
  }
  std::vector<double> reference(initial.count()), slack(initial.count());
  for (int64_t t = 0; t < S; ++t) {
    const double s = c.has_scale ? scale.get(t) : 1;
    for (int64_t f = 0; f < c.F; ++f) {
      const Gradient g = at(c, h, t, f);
      reference[t * c.F + f] = g.value * s;
      slack[t * c.F + f] = 16 * accumulator_epsilon(c.dtype) * g.size * std::fabs(s);
    }
  }
  expect_close(report, "out", call.result(0), 0, S * c.F, reference, slack);
  expect_tail(report, call.result(0), initial, S * c.F, c.zero_tail);
}

void check_backward(Report& report, const ActivationCase& c, std::mt19937_64& rng) {
  const int64_t T = c.groups.T, S = c.groups.offsets().back();
  const Array h = make_h(c, rng);
  Array dy(c.dtype, {T, c.F});
  dy.randomize(rng, 0, S * c.F);
  Array scale(c.scale_dtype(), {T});
  scale.randomize(rng, 0, S);
  const Array initial(c.dtype, {T, c.H()});
  const Array initial_scale(c.scale_dtype(), {T});
  Call call(report);
  grouped_activation_grad_args args{};
  args.struct_size = sizeof(args);
  args.h = call.input("h", h);
  args.dy = call.input("dy", dy);
  args.group_sizes = call.input("group_sizes", c.groups.array());
  args.row_scale = c.has_scale ? call.input("row_scale", scale) : nullptr;
  args.dh = call.output("dh", initial);
  args.d_row_scale = c.has_scale ? call.output("d_row_scale", initial_scale) : nullptr;
  args.options = c.options();
  args.sizes_kind = c.groups.are_ends ? GROUPED_ENDS : GROUPED_SIZES;
  args.tail = c.zero_tail ? GROUPED_TAIL_ZERO : GROUPED_TAIL_KEEP;
  if (!call.run(
          GROUPED_OP_ACTIVATION_GRAD, c.dtype, c.H(), c.F, c.groups.G(),
          [&](const grouped_launch* l, grouped_status* s) { return grouped_activation_grad(&args, l, s); })) {
    return;
  }
  const double epsilon = 16 * accumulator_epsilon(c.dtype);
  std::vector<double> reference(initial.count()), slack(initial.count()), sums(T), sum_slack(T);
  for (int64_t t = 0; t < S; ++t) {
    const double s = c.has_scale ? scale.get(t) : 1;
    for (int64_t f = 0; f < c.F; ++f) {
      const Gradient g = at(c, h, t, f);
      const double d = dy.get(t * c.F + f);
      const int64_t gate = t * c.H() + c.gate_at(f);
      reference[gate] = g.d_gate * d * s;
      slack[gate] = epsilon * g.size * std::fabs(d * s);
      if (c.gated()) {
        const int64_t up = t * c.H() + c.up_at(f);
        reference[up] = g.d_up * d * s;
        slack[up] = epsilon * g.size * std::fabs(d * s);
      }
      sums[t] += d * g.value;
      sum_slack[t] += epsilon * g.size * std::fabs(d) * 4;
    }
  }
  expect_close(report, "dh", call.result(0), 0, S * c.H(), reference, slack);
  expect_tail(report, call.result(0), initial, S * c.H(), c.zero_tail);
  if (c.has_scale) {
    expect_close(report, "d_row_scale", call.result(1), 0, S, sums, sum_slack);
    expect_tail(report, call.result(1), initial_scale, S, c.zero_tail);
  }
}

}  // namespace

void activation_suite(Report& report, bool quick) {
  const std::vector<int64_t> features =
      quick ? std::vector<int64_t>{40, 13} : std::vector<int64_t>{40, 13, 1, 0, 300};
  report.begin_suite("activation");
  std::mt19937_64 rng(4);
  for (int dtype : kDTypes) {
    for (const Groups& groups : group_cases(quick)) {
      if (groups.G() > 100) continue;
      for (int64_t F : features) {
        for (int kind = 0; kind < GROUPED_ACTIVATION_COUNT; ++kind) {
          const uint64_t flags = rng();
          ActivationCase c{groups, dtype, F, kind};
          c.interleaved = flags & 1;
          c.has_scale = flags & 2;
          c.wide_scale = flags & 4;
          c.zero_tail = flags & 8;
          report.begin_case(c.name("forward"));
          check_forward(report, c, rng);
          report.end_case();
          report.begin_case(c.name("backward"));
          check_backward(report, c, rng);
          report.end_case();
        }
      }
    }
  }
  report.end_suite();
}

}  // namespace sanitize
