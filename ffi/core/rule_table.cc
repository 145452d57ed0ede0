// SPDX-License-Identifier: Apache-2.0
// The table. A row an argument, in the order in which arguments are checked.
#include "core/rules.h"

namespace grouped {
namespace {

constexpr bool kRequired = false, kOptional = true;
constexpr bool kInput = false, kBuffer = true;
using R = DTypeRule;

#define FIELD(args, field) offsetof(args, field)
constexpr ArgumentRule kMm[] = {
    {"x", {"TK", "TK"}, R::kBase, kRequired, kInput, FIELD(grouped_mm_args, x)},
    {"weight", {"GNK", "GKN"}, R::kSame, kRequired, kInput, FIELD(grouped_mm_args, weight)},
    {"group_sizes", {"G", "G"}, R::kSizes, kRequired, kInput, FIELD(grouped_mm_args, group_sizes)},
    {"bias", {"GN", "GN"}, R::kSameOrAccumulator, kOptional, kInput, FIELD(grouped_mm_args, bias)},
    {"row_scale", {"T", "T"}, R::kSameOrAccumulator, kOptional, kInput, FIELD(grouped_mm_args, row_scale)},
    {"out", {"TN", "TN"}, R::kSameOrAccumulator, kRequired, kBuffer, FIELD(grouped_mm_args, out)},
};
constexpr ArgumentRule kWgrad[] = {
    {"x", {"TK", "TK"}, R::kBase, kRequired, kInput, FIELD(grouped_wgrad_args, x)},
    {"dy", {"TN", "TN"}, R::kSame, kRequired, kInput, FIELD(grouped_wgrad_args, dy)},
    {"group_sizes", {"G", "G"}, R::kSizes, kRequired, kInput, FIELD(grouped_wgrad_args, group_sizes)},
    {"out", {"GNK", "GKN"}, R::kSameOrAccumulator, kRequired, kBuffer, FIELD(grouped_wgrad_args, out)},
};
constexpr ArgumentRule kBiasGrad[] = {
    {"dy", {"TN", "TN"}, R::kBase, kRequired, kInput, FIELD(grouped_bias_grad_args, dy)},
    {"group_sizes", {"G", "G"}, R::kSizes, kRequired, kInput, FIELD(grouped_bias_grad_args, group_sizes)},
    {"out", {"GN", "GN"}, R::kSameOrAccumulator, kRequired, kBuffer, FIELD(grouped_bias_grad_args, out)},
};
constexpr ArgumentRule kActivation[] = {
    {"h", {"TH", "TH"}, R::kBase, kRequired, kInput, FIELD(grouped_activation_args, h)},
    {"group_sizes", {"G", "G"}, R::kSizes, kRequired, kInput, FIELD(grouped_activation_args, group_sizes)},
    {"row_scale",
     {"T", "T"},
     R::kSameOrAccumulator,
     kOptional,
     kInput,
     FIELD(grouped_activation_args, row_scale)},
    {"out", {"TF", "TF"}, R::kSame, kRequired, kBuffer, FIELD(grouped_activation_args, out)},
};
constexpr ArgumentRule kActivationGrad[] = {
    {"h", {"TH", "TH"}, R::kBase, kRequired, kInput, FIELD(grouped_activation_grad_args, h)},
    {"dy", {"TF", "TF"}, R::kSame, kRequired, kInput, FIELD(grouped_activation_grad_args, dy)},
    {"group_sizes",
     {"G", "G"},
     R::kSizes,
     kRequired,
     kInput,
     FIELD(grouped_activation_grad_args, group_sizes)},
    {"row_scale",
     {"T", "T"},
     R::kSameOrAccumulator,
     kOptional,
     kInput,
     FIELD(grouped_activation_grad_args, row_scale)},
    {"dh", {"TH", "TH"}, R::kSame, kRequired, kBuffer, FIELD(grouped_activation_grad_args, dh)},
    {"d_row_scale",
     {"T", "T"},
     R::kRowScale,
     kOptional,
     kBuffer,
     FIELD(grouped_activation_grad_args, d_row_scale)},
};
constexpr ArgumentRule kRowScale[] = {
    {"x", {"TK", "TK"}, R::kSameOrAccumulator, kRequired, kInput, FIELD(grouped_row_scale_args, x)},
    {"group_sizes", {"G", "G"}, R::kSizes, kRequired, kInput, FIELD(grouped_row_scale_args, group_sizes)},
    {"row_scale",
     {"T", "T"},
     R::kSameOrAccumulator,
     kRequired,
     kInput,
     FIELD(grouped_row_scale_args, row_scale)},
    {"out", {"TK", "TK"}, R::kBase, kRequired, kBuffer, FIELD(grouped_row_scale_args, out)},
};
constexpr ArgumentRule kRowDot[] = {
    {"a", {"TK", "TK"}, R::kBase, kRequired, kInput, FIELD(grouped_row_dot_args, a)},
    {"b", {"TK", "TK"}, R::kSameOrAccumulator, kRequired, kInput, FIELD(grouped_row_dot_args, b)},
    {"group_sizes", {"G", "G"}, R::kSizes, kRequired, kInput, FIELD(grouped_row_dot_args, group_sizes)},
    {"dy", {"TN", "TN"}, R::kSame, kOptional, kInput, FIELD(grouped_row_dot_args, dy)},
    {"bias", {"GN", "GN"}, R::kSameOrAccumulator, kOptional, kInput, FIELD(grouped_row_dot_args, bias)},
    {"out", {"T", "T"}, R::kSameOrAccumulator, kRequired, kBuffer, FIELD(grouped_row_dot_args, out)},
};
constexpr ArgumentRule kLinear[] = {
    {"x", {"TK", "TK"}, R::kBase, kRequired, kInput, FIELD(grouped_linear_args, x)},
    {"weight", {"GNK", "GKN"}, R::kSame, kRequired, kInput, FIELD(grouped_linear_args, weight)},
    {"group_sizes", {"G", "G"}, R::kSizes, kRequired, kInput, FIELD(grouped_linear_args, group_sizes)},
    {"bias", {"GN", "GN"}, R::kSameOrAccumulator, kOptional, kInput, FIELD(grouped_linear_args, bias)},
    {"row_scale",
     {"T", "T"},
     R::kSameOrAccumulator,
     kOptional,
     kInput,
     FIELD(grouped_linear_args, row_scale)},
    {"out", {"TN", "TN"}, R::kSame, kOptional, kBuffer, FIELD(grouped_linear_args, out)},
    {"dgrad_out", {"TK", "TK"}, R::kSame, kOptional, kBuffer, FIELD(grouped_linear_args, dgrad_out)},
    {"wgrad_out",
     {"GNK", "GKN"},
     R::kSameOrAccumulator,
     kOptional,
     kBuffer,
     FIELD(grouped_linear_args, wgrad_out)},
};
#undef FIELD

template <int32_t kCount>
constexpr OperationRule operation(const char* name, size_t struct_size,
                                  const ArgumentRule (&arguments)[kCount], int32_t base = 0) {
  return {name, struct_size, arguments, kCount, base};
}

// Indexed by GROUPED_OP_*.
constexpr OperationRule kOperations[] = {
    operation("grouped_mm", sizeof(grouped_mm_args), kMm),
    operation("grouped_wgrad", sizeof(grouped_wgrad_args), kWgrad),
    operation("grouped_bias_grad", sizeof(grouped_bias_grad_args), kBiasGrad),
    operation("grouped_activation", sizeof(grouped_activation_args), kActivation),
    operation("grouped_activation_grad", sizeof(grouped_activation_grad_args), kActivationGrad),
    operation("grouped_row_scale", sizeof(grouped_row_scale_args), kRowScale, 3),
    operation("grouped_row_dot", sizeof(grouped_row_dot_args), kRowDot),
    operation("grouped_linear", sizeof(grouped_linear_args), kLinear),
};
static_assert(sizeof(kOperations) / sizeof(kOperations[0]) == GROUPED_OP_COUNT, "a row for every operation");

}  // namespace

const OperationRule* rule_of(int32_t op) {
  return op >= 0 && op < GROUPED_OP_COUNT ? &kOperations[op] : nullptr;
}

}  // namespace grouped
