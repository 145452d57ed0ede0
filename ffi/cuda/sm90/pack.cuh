// SPDX-License-Identifier: Apache-2.0
// Two neighbouring 16-bit elements as one word.
#pragma once

#include <cstdint>

#include "common/pair.cuh"

namespace grouped::cuda::sm90 {

template <typename T>
__device__ __forceinline__ uint32_t packed(float2 v) {
  const auto pair = narrow_pair(T(), v.x, v.y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <typename T>
__device__ __forceinline__ float2 unpacked(uint32_t v) {
  return widen_pair(*reinterpret_cast<const decltype(narrow_pair(T(), 0.0f, 0.0f))*>(&v));
}

}  // namespace grouped::cuda::sm90
