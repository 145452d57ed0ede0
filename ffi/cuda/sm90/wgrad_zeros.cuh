// SPDX-License-Identifier: Apache-2.0
// What a weight gradient is where a group has no rows.
#pragma once

#include "common/group_sizes.cuh"
#include "common/vector.cuh"
#include "portable/wgrad.cuh"

namespace grouped::cuda::sm90 {

// Zeros for the results of empty groups, by any number of warps at any time: each takes a part when it is
// done with the one before. So they are written beside the products, which leave memory half idle, by warps
// that have nothing else to do, and not behind them.
template <typename T>
__device__ __forceinline__ void zero_empty_groups(const WgradParams<T>& p) {
  constexpr int64_t kPartBytes = 64 * 1024;
  const int64_t bytes = p.rows * p.columns * static_cast<int64_t>(p.out.is_wide ? sizeof(float) : sizeof(T));
  const int64_t num_filled = *p.map.num_filled;
  const int64_t in_group = (bytes + kPartBytes - 1) / kPartBytes;
  const int64_t parts = (p.map.G - num_filled) * in_group;
  if (parts == 0) return;
  const int lane = threadIdx.x % 32;
  const auto take = [&] { return lane == 0 ? atomicAdd(p.map.taken, 1u) : 0u; };
  uint32_t next = take();
  for (;;) {
    const int64_t part = __shfl_sync(kAllLanes, next, 0);
    if (part >= parts) return;
    next = take();  // ahead, since the answer takes as long as some of the writing
    const int64_t place = part / in_group;
    const int64_t first = (part - place * in_group) * kPartBytes;
    char* group = static_cast<char*>(p.out.data) + p.map.order[num_filled + place] * bytes;
    zero_bytes(group + first, group + min(first + kPartBytes, bytes), lane, 32);
  }
}

}  // namespace grouped::cuda::sm90
