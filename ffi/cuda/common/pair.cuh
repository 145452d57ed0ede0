// SPDX-License-Identifier: Apache-2.0
// Two neighbouring elements of a 16-bit or fp32 result, in one access where the row allows it.
#pragma once

#include "common/convert.cuh"

namespace grouped::cuda {

__device__ __forceinline__ __half2 narrow_pair(__half, float v0, float v1) {
  return __floats2half2_rn(v0, v1);
}
__device__ __forceinline__ __nv_bfloat162 narrow_pair(__nv_bfloat16, float v0, float v1) {
  return __floats2bfloat162_rn(v0, v1);
}
__device__ __forceinline__ float2 widen_pair(__half2 v) { return __half22float2(v); }
__device__ __forceinline__ float2 widen_pair(__nv_bfloat162 v) { return __bfloat1622float2(v); }

// Elements i and i + 1 of `out`. `vectors` promises that i is even and element 0 aligned to a pair; `second`
// tells whether element i + 1 belongs to the result.
template <typename T>
__device__ __forceinline__ void store_pair(const EitherOutput<T>& out, int64_t i, float2 v, bool vectors,
                                           bool second) {
  if (!vectors) {
    out.store(i, v.x);
    if (second) out.store(i + 1, v.y);
  } else if (out.is_wide) {
    *reinterpret_cast<float2*>(static_cast<float*>(out.data) + i) = v;
  } else {
    const auto narrowed = narrow_pair(T(), v.x, v.y);
    *reinterpret_cast<decltype(narrow_pair(T(), v.x, v.y))*>(static_cast<T*>(out.data) + i) = narrowed;
  }
}

template <typename T>
__device__ __forceinline__ float2 load_pair(const EitherOutput<T>& out, int64_t i, bool vectors,
                                            bool second) {
  if (!vectors) return {out[i], second ? out[i + 1] : 0.0f};
  if (out.is_wide) return *reinterpret_cast<const float2*>(static_cast<const float*>(out.data) + i);
  return widen_pair(
      *reinterpret_cast<const decltype(narrow_pair(T(), 0.0f, 0.0f))*>(static_cast<const T*>(out.data) + i));
}

// Whether a row length and a base pointer keep that promise.
template <typename T>
bool pairs_are_aligned(const EitherOutput<T>& out, int64_t row_length) {
  const size_t pair_bytes = 2 * (out.is_wide ? sizeof(Accumulator<T>) : sizeof(T));
  return row_length % 2 == 0 && reinterpret_cast<uintptr_t>(out.data) % pair_bytes == 0;
}

}  // namespace grouped::cuda
