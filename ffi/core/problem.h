// SPDX-License-Identifier: Apache-2.0
// What a backend is given: checked, contiguous, row-major, all on one device. Pointers may be null where a
// dimension is zero. `zero_tail` false means rows S..T of a result must not be touched.
#pragma once

#include "core/types.h"

namespace grouped {

struct GroupSizes {
  const void* data;  // [count] int32 or int64, in the memory of the device that computes
  int64_t count;     // G
  int64_t rows;      // T
  bool is_64bit;
  bool are_ends;
};

// out[t] = round((x[t] @ W[g] + bias[g]) * row_scale[t])
struct MmProblem {
  int64_t T, K, N, G;
  const void *x, *weight, *bias, *row_scale;  // bias, row_scale may be null
  void* out;
  DType in, out_dtype, bias_dtype, scale_dtype;  // x and weight are `in`; the others `in` or its accumulator
  bool weight_is_gkn;
  bool zero_tail;
  GroupSizes sizes;
};

// out[g] (+)= x_g^T dy_g
struct WgradProblem {
  int64_t T, K, N, G;
  const void *x, *dy;
  void* out;
  DType in, out_dtype;
  bool out_is_gkn;
  bool accumulate;
  GroupSizes sizes;
};

// out[g] (+)= sum over rows of dy
struct BiasGradProblem {
  int64_t T, N, G;
  const void* dy;
  void* out;
  DType in, out_dtype;
  bool accumulate;
  GroupSizes sizes;
};

struct ActivationProblem {
  int64_t T, F;
  int32_t kind;      // GROUPED_SWIGLU ...
  bool interleaved;  // gate0, up0, gate1, up1, ...; else [gate | up]
  double alpha, limit, offset;
  const void *h, *row_scale;  // row_scale may be null
  void* out;
  DType in, scale_dtype;
  bool zero_tail;
  GroupSizes sizes;
};

struct ActivationGradProblem {
  ActivationProblem forward;  // `out` is null
  const void* dy;
  void *dh, *d_row_scale;  // d_row_scale may be null; its dtype is scale_dtype
};

// out[t] = round(x[t] * row_scale[t])
struct RowScaleProblem {
  int64_t T, K;
  const void *x, *row_scale;
  void* out;
  DType in, scale_dtype, out_dtype;  // in may be the accumulator of out_dtype
  bool zero_tail;
  GroupSizes sizes;
};

// out[t] = round(a[t] . b[t] + dy[t] . bias[g])
struct RowDotProblem {
  int64_t T, K, N, G;
  const void *a, *b, *dy, *bias;  // dy and bias are both null or both given
  void* out;
  DType in, b_dtype, bias_dtype, out_dtype;  // a and dy are `in`
  bool zero_tail;
  GroupSizes sizes;
};

}  // namespace grouped
