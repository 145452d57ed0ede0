// SPDX-License-Identifier: Apache-2.0
#include "core/make_problem.h"

#include "core/activation_math.h"

namespace grouped {
namespace {

void* data_of(const grouped_tensor* t) { return t == nullptr ? nullptr : t->data; }
DType dtype_of(const grouped_tensor* t, DType otherwise) {
  return t == nullptr ? otherwise : static_cast<DType>(t->dtype);
}

// Options are numbers that a binding writes, so a wrong one is a fault of the binding.
Status check_option(const char* name, int32_t value, int32_t count) {
  if (value >= 0 && value < count) return Status();
  return Status(GROUPED_BAD_VALUE, std::string(name) + " must be from 0 to " + std::to_string(count - 1) +
                                       "; got " + std::to_string(value) + ".");
}

// Before any other field is read: a shorter structure does not have them all.
template <typename Args>
Status check_struct(int32_t op, const Args& args) {
  if (args.struct_size >= sizeof(Args)) return Status();
  return Status(GROUPED_INTERNAL, std::string(rule_of(op)->name) + ": arguments of " +
                                      std::to_string(args.struct_size) + " bytes; this library needs " +
                                      std::to_string(sizeof(Args)) + ". Build against its grouped.h.");
}

template <typename Args>
Status check(int32_t op, const Args& args, int32_t weight_layout, bool gated, Checked* found) {
  const OperationRule& rule = *rule_of(op);
  Status s = check_struct(op, args);
  if (s.ok()) s = check_option("weight_layout", weight_layout, 2);
  if (s.ok()) s = check_option("sizes_kind", args.sizes_kind, 2);
  if (s.ok()) s = check_arguments(rule, &args, weight_layout, gated, found);
  return s;
}

GroupSizes sizes_of(const grouped_tensor& t, int32_t kind, const Dims& dims) {
  return {t.data, dims['G'], dims['T'], t.dtype == GROUPED_I64, kind == GROUPED_ENDS};
}

Status check_activation_options(const grouped_activation_options& options) {
  Status s = check_option("kind", options.kind, GROUPED_ACTIVATION_COUNT);
  return s.ok() ? check_option("gate_layout", options.gate_layout, 2) : s;
}

template <typename Args>
ActivationProblem activation_problem(const Args& args, const Checked* found) {
  const grouped_activation_options& o = args.options;
  return {found->dims['T'],
          found->dims['F'],
          o.kind,
          o.gate_layout == GROUPED_INTERLEAVED,
          o.alpha,
          o.limit,
          o.offset,
          args.h->data,
          data_of(args.row_scale),
          nullptr,
          found->base,
          dtype_of(args.row_scale, found->base),
          args.tail == GROUPED_TAIL_ZERO,
          sizes_of(*args.group_sizes, args.sizes_kind, found->dims)};
}

}  // namespace

Status make_problem(const grouped_mm_args& args, MmProblem* problem, Checked* found) {
  Status s = check(GROUPED_OP_MM, args, args.weight_layout, false, found);
  if (s.ok()) s = check_option("tail", args.tail, 2);
  if (!s.ok() || problem == nullptr) return s;
  const Dims& d = found->dims;
  *problem = {d['T'],
              d['K'],
              d['N'],
              d['G'],
              args.x->data,
              args.weight->data,
              data_of(args.bias),
              data_of(args.row_scale),
              args.out->data,
              found->base,
              dtype_of(args.out, found->base),
              dtype_of(args.bias, found->base),
              dtype_of(args.row_scale, found->base),
              args.weight_layout == GROUPED_GKN,
              args.tail == GROUPED_TAIL_ZERO,
              sizes_of(*args.group_sizes, args.sizes_kind, d)};
  return s;
}

Status make_problem(const grouped_wgrad_args& args, WgradProblem* problem, Checked* found) {
  Status s = check(GROUPED_OP_WGRAD, args, args.weight_layout, false, found);
  if (!s.ok() || problem == nullptr) return s;
  const Dims& d = found->dims;
  *problem = {d['T'],
              d['K'],
              d['N'],
              d['G'],
              args.x->data,
              args.dy->data,
              args.out->data,
              found->base,
              dtype_of(args.out, found->base),
              args.weight_layout == GROUPED_GKN,
              args.accumulate != 0,
              sizes_of(*args.group_sizes, args.sizes_kind, d)};
  return s;
}

Status make_problem(const grouped_bias_grad_args& args, BiasGradProblem* problem, Checked* found) {
  Status s = check(GROUPED_OP_BIAS_GRAD, args, GROUPED_GNK, false, found);
  if (!s.ok() || problem == nullptr) return s;
  const Dims& d = found->dims;
  *problem = {d['T'],
              d['N'],
              d['G'],
              args.dy->data,
              args.out->data,
              found->base,
              dtype_of(args.out, found->base),
              args.accumulate != 0,
              sizes_of(*args.group_sizes, args.sizes_kind, d)};
  return s;
}

Status make_problem(const grouped_activation_args& args, ActivationProblem* problem, Checked* found) {
  Status s = check_struct(GROUPED_OP_ACTIVATION, args);
  if (s.ok()) s = check_activation_options(args.options);
  if (s.ok()) s = check(GROUPED_OP_ACTIVATION, args, GROUPED_GNK, is_gated(args.options.kind), found);
  if (s.ok()) s = check_option("tail", args.tail, 2);
  if (!s.ok() || problem == nullptr) return s;
  *problem = activation_problem(args, found);
  problem->out = args.out->data;
  return s;
}

Status make_problem(const grouped_activation_grad_args& args, ActivationGradProblem* problem,
                    Checked* found) {
  Status s = check_struct(GROUPED_OP_ACTIVATION_GRAD, args);
  if (s.ok() && args.d_row_scale != nullptr && args.row_scale == nullptr)
    s = Status(GROUPED_BAD_VALUE, "d_row_scale needs row_scale; got none.");
  if (s.ok()) s = check_activation_options(args.options);
  if (s.ok()) s = check(GROUPED_OP_ACTIVATION_GRAD, args, GROUPED_GNK, is_gated(args.options.kind), found);
  if (s.ok()) s = check_option("tail", args.tail, 2);
  if (!s.ok() || problem == nullptr) return s;
  *problem = {activation_problem(args, found), args.dy->data, args.dh->data, data_of(args.d_row_scale)};
  return s;
}

Status make_problem(const grouped_row_scale_args& args, RowScaleProblem* problem, Checked* found) {
  Status s = check(GROUPED_OP_ROW_SCALE, args, GROUPED_GNK, false, found);
  if (s.ok()) s = check_option("tail", args.tail, 2);
  if (!s.ok() || problem == nullptr) return s;
  *problem = {found->dims['T'],
              found->dims['K'],
              args.x->data,
              args.row_scale->data,
              args.out->data,
              dtype_of(args.x, found->base),
              dtype_of(args.row_scale, found->base),
              found->base,
              args.tail == GROUPED_TAIL_ZERO,
              sizes_of(*args.group_sizes, args.sizes_kind, found->dims)};
  return s;
}

Status make_problem(const grouped_row_dot_args& args, RowDotProblem* problem, Checked* found) {
  Status s = check_struct(GROUPED_OP_ROW_DOT, args);
  if (s.ok() && (args.dy == nullptr) != (args.bias == nullptr))
    s = Status(GROUPED_BAD_VALUE, "grouped_row_dot takes dy and bias together; got one of them.");
  if (s.ok()) s = check(GROUPED_OP_ROW_DOT, args, GROUPED_GNK, false, found);
  if (s.ok()) s = check_option("tail", args.tail, 2);
  if (!s.ok() || problem == nullptr) return s;
  const Dims& d = found->dims;
  *problem = {d['T'],
              d['K'],
              d['N'],
              d['G'],
              args.a->data,
              args.b->data,
              data_of(args.dy),
              data_of(args.bias),
              args.out->data,
              found->base,
              dtype_of(args.b, found->base),
              dtype_of(args.bias, found->base),
              dtype_of(args.out, found->base),
              args.tail == GROUPED_TAIL_ZERO,
              sizes_of(*args.group_sizes, args.sizes_kind, d)};
  return s;
}

Status check_linear(const grouped_linear_args& args) {
  Checked found;
  return check(GROUPED_OP_LINEAR, args, args.weight_layout, false, &found);
}

}  // namespace grouped
