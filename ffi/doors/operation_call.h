// SPDX-License-Identifier: Apache-2.0
// One call of the C interface from a list of tensors: what both doors decode into. Tensors stand in the order
// of the operation's rule table, null where an optional one is absent.
#pragma once

#include "core/on_demand.h"
#include "grouped/grouped.h"

namespace grouped::doors {

constexpr int kMaxArguments = 8;

struct Options {
  int32_t weight_layout = GROUPED_GNK;
  int32_t sizes_kind = GROUPED_SIZES;
  int32_t tail = GROUPED_TAIL_KEEP;
  int32_t accumulate = 0;
  grouped_activation_options activation = {};
};

// Whether the rules for buffers apply to argument `place` of `op`.
bool is_buffer(int32_t op, int32_t place);

// Whether h has a gate, and so twice the columns of the result.
bool has_gate(const Options& options);

// Whether the elements lie one after another in the order of the dimensions.
bool is_contiguous(const grouped_tensor& tensor);

// The shape of argument `place` of `op` as the tensors before it tell, with 0 for a size that none of them
// has. Returns its rank; -1 where there is no such argument.
int32_t shape_of(int32_t op, int32_t place, const grouped_tensor* const* tensors, const Options& options,
                 int64_t* shape);

// With a null launch the rules are checked and nothing runs. With a source the launch brings no workspace.
int32_t call_operation(int32_t op, const grouped_tensor* const* tensors, const Options& options,
                       const grouped_launch* launch, grouped_status* status,
                       const WorkspaceSource* source = nullptr);

}  // namespace grouped::doors
