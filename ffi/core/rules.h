// SPDX-License-Identifier: Apache-2.0
// The rules on shapes, dtypes, devices, layout, alignment and overlap: one table, one checker, one set of
// words.
#pragma once

#include <cstddef>

#include "core/types.h"

namespace grouped {

enum class DTypeRule {
  kBase,               // one of the dtypes the core computes on; the dtype the other rules speak of
  kSame,               // the base dtype
  kSameOrAccumulator,  // the base dtype, or f32 beside a 16-bit base
  kSizes,              // i32 or i64
  kRowScale,           // whatever row_scale has
};

struct ArgumentRule {
  const char* name;
  const char* dims[2];  // as letters, for GROUPED_GNK and GROUPED_GKN
  DTypeRule dtype;
  bool optional;
  bool buffer;    // written by the call: the rules for buffers apply
  size_t offset;  // of its `const grouped_tensor*` in the argument structure
};

struct OperationRule {
  const char* name;
  size_t struct_size;
  const ArgumentRule* arguments;
  int32_t count;
  int32_t base;  // index of the argument with the base dtype
};

// Null for a number that is no operation.
const OperationRule* rule_of(int32_t op);

// What a successful check found. A letter that no argument binds is 0.
class Dims {
 public:
  int64_t operator[](char letter) const { return value_[letter - 'A']; }
  bool has(char letter) const { return bound_[letter - 'A']; }
  void bind(char letter, int64_t value) {
    value_[letter - 'A'] = value;
    bound_[letter - 'A'] = true;
  }

 private:
  int64_t value_[26] = {};
  bool bound_[26] = {};
};

struct Checked {
  Dims dims;
  DType base = DType::kF32;
  int32_t device = GROUPED_DEVICE_CPU;
};

// Whether the elements lie one after another in the order of the dimensions; so if there are none.
bool is_contiguous(const grouped_tensor& t);

// `gated` says how H and F hang together; only activations read it.
Status check_arguments(const OperationRule& rule, const void* args, int32_t weight_layout, bool gated,
                       Checked* out);

}  // namespace grouped
