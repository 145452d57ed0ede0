// SPDX-License-Identifier: Apache-2.0
// Group sizes to row offsets: what a bad size means. Shared by host and device code; the scans of whole
// warps on the device restate it.
#pragma once

#include <string>

#include "core/problem.h"

#if defined(__CUDACC__)
#define GROUPED_HD __host__ __device__ __forceinline__
#else
#define GROUPED_HD inline
#endif

namespace grouped {

// A size or end as it enters the running sum (or running maximum): never negative, never above T, so that
// 64-bit sums over any G cannot overflow.
GROUPED_HD int64_t clamp_size(int64_t value, int64_t T) { return value < 0 ? 0 : value > T ? T : value; }

// offsets[g] = first row of group g, offsets[G] = S. Both kinds end at min(T, running value).
GROUPED_HD int64_t next_offset(int64_t offset, int64_t value, bool are_ends, int64_t T) {
  const int64_t v = clamp_size(value, T);
  const int64_t next = are_ends ? (v > offset ? v : offset) : offset + v;
  return next < T ? next : T;
}

// Host memory only. With `check`, a size that does not fit is an error that names its group.
Status resolve_offsets(const GroupSizes& sizes, bool check, int64_t* offsets /* [G + 1] */);

}  // namespace grouped
