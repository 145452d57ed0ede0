// SPDX-License-Identifier: Apache-2.0
#include "doors/operation_call.h"

#include "core/activation_math.h"
#include "core/rules.h"

namespace grouped::doors {
namespace {

template <typename Args>
int32_t finish(int32_t op, int32_t (*function)(const Args*, const grouped_launch*, grouped_status*),
               const Args& args, const grouped_launch* launch, grouped_status* status,
               const WorkspaceSource* source) {
  if (launch == nullptr) return grouped_check(op, &args, status);
  return source == nullptr ? function(&args, launch, status)
                           : run_on_demand(op, &args, *launch, *source, status);
}

// The size that a letter of the rule table stands for, as the first of the tensors that has it tells.
int64_t size_behind(char letter, const OperationRule& rule, int32_t count, const Options& options,
                    const grouped_tensor* const* tensors) {
  for (int32_t i = 0; i < count; ++i) {
    if (tensors[i] == nullptr) continue;
    const char* letters = rule.arguments[i].dims[options.weight_layout];
    for (int32_t d = 0; d < tensors[i]->rank && letters[d] != '\0'; ++d) {
      if (letters[d] == letter) return tensors[i]->shape[d];
      if (letters[d] == 'H' && letter == 'F') return tensors[i]->shape[d] / (has_gate(options) ? 2 : 1);
    }
  }
  return 0;
}

}  // namespace

bool is_contiguous(const grouped_tensor& tensor) { return grouped::is_contiguous(tensor); }

int32_t shape_of(int32_t op, int32_t place, const grouped_tensor* const* tensors, const Options& options,
                 int64_t* shape) {
  const OperationRule* rule = rule_of(op);
  const int32_t layout = options.weight_layout;
  if (rule == nullptr || place < 0 || place >= rule->count || layout < 0 || layout > 1) return -1;
  int32_t rank = 0;
  for (const char* letter = rule->arguments[place].dims[layout]; *letter != '\0'; ++letter)
    shape[rank++] = size_behind(*letter, *rule, place, options, tensors);
  return rank;
}

bool is_buffer(int32_t op, int32_t place) {
  const OperationRule* rule = rule_of(op);
  return rule != nullptr && place >= 0 && place < rule->count && rule->arguments[place].buffer;
}

bool has_gate(const Options& options) { return is_gated(options.activation.kind); }

int32_t call_operation(int32_t op, const grouped_tensor* const* t, const Options& o,
                       const grouped_launch* launch, grouped_status* status, const WorkspaceSource* source) {
  switch (op) {
    case GROUPED_OP_MM: {
      const grouped_mm_args args = {sizeof(args),    t[0],         t[1],   t[2], t[3], t[4], t[5],
                                    o.weight_layout, o.sizes_kind, o.tail, 0};
      return finish(op, grouped_mm, args, launch, status, source);
    }
    case GROUPED_OP_WGRAD: {
      const grouped_wgrad_args args = {sizeof(args),    t[0],         t[1],         t[2], t[3],
                                       o.weight_layout, o.sizes_kind, o.accumulate, 0};
      return finish(op, grouped_wgrad, args, launch, status, source);
    }
    case GROUPED_OP_BIAS_GRAD: {
      const grouped_bias_grad_args args = {sizeof(args), t[0], t[1], t[2], o.sizes_kind, o.accumulate};
      return finish(op, grouped_bias_grad, args, launch, status, source);
    }
    case GROUPED_OP_ACTIVATION: {
      const grouped_activation_args args = {sizeof(args), t[0],         t[1],         t[2],
                                            t[3],         o.activation, o.sizes_kind, o.tail};
      return finish(op, grouped_activation, args, launch, status, source);
    }
    case GROUPED_OP_ACTIVATION_GRAD: {
      const grouped_activation_grad_args args = {sizeof(args), t[0], t[1],         t[2],         t[3],
                                                 t[4],         t[5], o.activation, o.sizes_kind, o.tail};
      return finish(op, grouped_activation_grad, args, launch, status, source);
    }
    case GROUPED_OP_ROW_SCALE: {
      const grouped_row_scale_args args = {sizeof(args), t[0], t[1], t[2], t[3], o.sizes_kind, o.tail};
      return finish(op, grouped_row_scale, args, launch, status, source);
    }
    case GROUPED_OP_ROW_DOT: {
      const grouped_row_dot_args args = {sizeof(args), t[0], t[1],         t[2],  t[3],
                                         t[4],         t[5], o.sizes_kind, o.tail};
      return finish(op, grouped_row_dot, args, launch, status, source);
    }
    default: {  // GROUPED_OP_LINEAR is a check; a number that is no operation is reported by it
      const grouped_linear_args args = {
          sizeof(args), t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], o.weight_layout, o.sizes_kind};
      return grouped_check(op, &args, status);
    }
  }
}

}  // namespace grouped::doors
