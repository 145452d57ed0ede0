// SPDX-License-Identifier: Apache-2.0
// Element types on the device: their accumulator, and the one rounding between the two.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "core/types.h"

namespace grouped::cuda {

// fp64 sums in fp64, everything else in fp32.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }

// Round to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T narrow(Accumulator<T> v) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(v);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(v);
  } else {
    return v;
  }
}

// Written as functions, so that no sum and product of ours is contracted into an fma behind our back.
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double multiply(double a, double b) { return __dmul_rn(a, b); }

// An array of T or of T's accumulator, as a run-time flag: a warp-uniform branch, not another kernel.
template <typename T>
struct EitherInput {
  const void* data;
  bool is_wide;

  __device__ __forceinline__ Accumulator<T> operator[](int64_t i) const {
    return is_wide ? static_cast<const Accumulator<T>*>(data)[i] : widen(static_cast<const T*>(data)[i]);
  }
};

template <typename T>
struct EitherOutput {
  void* data;
  bool is_wide;

  __device__ __forceinline__ Accumulator<T> operator[](int64_t i) const {
    return EitherInput<T>{data, is_wide}[i];
  }
  __device__ __forceinline__ void store(int64_t i, Accumulator<T> v) const {
    if (is_wide) {
      static_cast<Accumulator<T>*>(data)[i] = v;
    } else {
      static_cast<T*>(data)[i] = narrow<T>(v);
    }
  }
};

template <typename T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, __half>) return DType::kF16;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return DType::kBF16;
  if constexpr (std::is_same_v<T, float>) return DType::kF32;
  return DType::kF64;
}

template <typename T>
EitherInput<T> either_input(const void* data, DType dtype) {
  return {data, dtype != dtype_of<T>()};
}
template <typename T>
EitherOutput<T> either_output(void* data, DType dtype) {
  return {data, dtype != dtype_of<T>()};
}

// Calls f with a value of the C++ type of `dtype`.
template <typename F>
auto with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF16:
      return f(__half());
    case DType::kBF16:
      return f(__nv_bfloat16());
    case DType::kF32:
      return f(float());
    default:
      return f(double());
  }
}

}  // namespace grouped::cuda
