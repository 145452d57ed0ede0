// SPDX-License-Identifier: Apache-2.0
// offsets[g + 1] = next_offset(offsets[g], sizes[g]) for all groups, and the running count of row tiles or
// the groups' order, by one block. next_offset() is a running min(T, a + b) over sizes, a running max over
// ends. Both are associative on clamped values, so a block-wide scan gives exactly the sequential result.
#include <cuda_runtime.h>

#include <vector>

#include "common/group_sizes.cuh"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "core/offsets.h"
#include "portable/offsets.h"

namespace grouped::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxOrdered = 512;  // groups; among more, chance balances the work as well

struct OffsetsParams {
  GroupSizes sizes;
  int64_t tile_rows;
  int64_t* offsets;
  int64_t* row_tiles;  // or
  int32_t* order;
  Cleared cleared;
};

struct SaturatingAdd {
  int64_t limit;
  __device__ int64_t operator()(int64_t a, int64_t b) const { return a + b < limit ? a + b : limit; }
};
struct Add {
  __device__ int64_t operator()(int64_t a, int64_t b) const { return a + b; }
};
struct Max {
  __device__ int64_t operator()(int64_t a, int64_t b) const { return a > b ? a : b; }
};

// Inclusive scan over the block of `value`, begun from `carry`; 0 is neutral in all three scans.
// `warp_totals` is scratch for one value a warp.
template <typename Combine>
__device__ int64_t block_scan(int64_t value, int64_t carry, Combine combine, int64_t* warp_totals) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t left = __shfl_up_sync(0xffffffffu, value, distance);
    if (lane >= distance) value = combine(left, value);
  }
  if (lane == 31) warp_totals[warp] = value;
  __syncthreads();
  int64_t before = carry;
  for (int w = 0; w < warp; ++w) before = combine(before, warp_totals[w]);
  __syncthreads();  // the scratch is used again
  return combine(before, value);
}

// `ends`: scratch for a value of each thread; afterwards, of the last groups that were looked at, where each
// ends.
template <bool kCountsTiles>
__device__ __forceinline__ void compute_offsets(const OffsetsParams& p, int64_t* ends) {
  __shared__ int64_t warp_totals[kMaxThreads / 32];
  __shared__ int64_t last_row_tile;

  if (threadIdx.x == 0) {
    p.offsets[0] = 0;
    if (kCountsTiles) p.row_tiles[0] = 0;
  }
  const int64_t T = p.sizes.rows;
  int64_t carry_rows = 0;
  int64_t carry_tiles = 0;
  // Every thread runs every step, because a step holds barriers; groups past the last count as empty.
  for (int64_t first = 0; first < p.sizes.count; first += blockDim.x) {
    const int64_t g = first + threadIdx.x;
    const bool exists = g < p.sizes.count;
    const int64_t size = exists ? clamp_size(size_at(p.sizes, g), T) : 0;
    const int64_t end = p.sizes.are_ends ? block_scan(size, carry_rows, Max(), warp_totals)
                                         : block_scan(size, carry_rows, SaturatingAdd{T}, warp_totals);
    ends[threadIdx.x] = end;
    __syncthreads();
    if (exists) p.offsets[g + 1] = end;
    if constexpr (kCountsTiles) {
      const int64_t begin = threadIdx.x == 0 ? carry_rows : ends[threadIdx.x - 1];
      const int64_t tiles = (end - begin + p.tile_rows - 1) / p.tile_rows;
      const int64_t tiles_end = block_scan(tiles, carry_tiles, Add(), warp_totals);
      if (exists) p.row_tiles[g + 1] = tiles_end;
      if (threadIdx.x == blockDim.x - 1) last_row_tile = tiles_end;
    }
    carry_rows = ends[blockDim.x - 1];
    __syncthreads();
    if constexpr (kCountsTiles) carry_tiles = last_row_tile;
  }
}

__global__ void __launch_bounds__(kMaxThreads) offsets_kernel(const __grid_constant__ OffsetsParams p) {
  __shared__ int64_t ends[kMaxThreads];
  compute_offsets<true>(p, ends);
}

// Groups by falling size, then by number: a bitonic sort of one group a thread, for a block of a power of two
// of them. Pairs within a warp exchange by shuffles; that is all but 3 of 28 steps for 128 groups, and each
// of the others costs two meetings of the block.
__device__ void order_groups(const OffsetsParams& p, const int64_t* ends) {
  __shared__ uint64_t keys[kMaxOrdered];
  const int i = static_cast<int>(threadIdx.x);
  const bool exists = i < p.sizes.count;
  const int64_t size = exists ? ends[i] - (i == 0 ? 0 : ends[i - 1]) : 0;
  const uint64_t smaller = UINT32_MAX - static_cast<uint32_t>(size < INT32_MAX ? size : INT32_MAX);
  uint64_t key = exists ? smaller << 32 | static_cast<uint32_t>(i) : UINT64_MAX;
  for (int length = 2; length <= static_cast<int>(blockDim.x); length *= 2) {
    for (int distance = length / 2; distance > 0; distance /= 2) {
      uint64_t other;
      if (distance < 32) {
        other = __shfl_xor_sync(0xffffffffu, key, distance);
      } else {
        __syncthreads();  // all have read what was there before
        keys[i] = key;
        __syncthreads();
        other = keys[i ^ distance];
      }
      const bool takes_first = ((i & distance) == 0) == ((i & length) == 0);
      if ((other < key) == takes_first) key = other;
    }
  }
  if (exists) p.order[i] = static_cast<int32_t>(key);
}

__global__ void __launch_bounds__(kMaxThreads)
    ordered_offsets_kernel(const __grid_constant__ OffsetsParams p) {
  __shared__ int64_t ends[kMaxThreads];
  let_next_begin();
  for (int i = threadIdx.x; i < p.cleared.count; i += blockDim.x) p.cleared.words[i] = 0;
  compute_offsets<false>(p, ends);
  if (p.sizes.count <= kMaxOrdered) {
    order_groups(p, ends);
  } else {
    for (int64_t g = threadIdx.x; g < p.sizes.count; g += blockDim.x) p.order[g] = static_cast<int32_t>(g);
  }
}

}  // namespace

size_t row_map_size(int64_t G) {
  return static_cast<size_t>(G + 1) * 2 * sizeof(int64_t) + static_cast<size_t>(G) * sizeof(int32_t);
}

namespace {

int64_t* offsets_in(const Launch& launch) { return static_cast<int64_t*>(launch.workspace); }

Status launch_offsets(void (*kernel)(OffsetsParams), const OffsetsParams& params, const Launch& launch) {
  unsigned int threads = 32;  // a power of two, for the sort
  while (threads < params.sizes.count && threads < kMaxThreads) threads *= 2;
  return launch_kernel(kernel, 1, dim3(threads), 0, launch, params);
}

}  // namespace

Status make_row_map(const GroupSizes& sizes, int tile_rows, const Launch& launch, RowMap* map) {
  int64_t* offsets = offsets_in(launch);
  int64_t* row_tiles = offsets + sizes.count + 1;
  *map = RowMap{offsets, row_tiles, nullptr, sizes.count};
  return launch_offsets(offsets_kernel, {sizes, tile_rows, offsets, row_tiles, nullptr, {}}, launch);
}

Status make_ordered_row_map(const GroupSizes& sizes, const Launch& launch, Cleared cleared, RowMap* map) {
  int64_t* offsets = offsets_in(launch);
  int32_t* order = reinterpret_cast<int32_t*>(offsets + sizes.count + 1);
  *map = RowMap{offsets, nullptr, order, sizes.count};
  return launch_offsets(ordered_offsets_kernel, {sizes, 0, offsets, nullptr, order, cleared}, launch);
}

Status check_sizes(const GroupSizes& sizes, const Launch& launch) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  const cudaError_t asked = cudaStreamIsCapturing(stream_of(launch), &capture);
  if (asked == cudaErrorStreamCaptureImplicit || capture != cudaStreamCaptureStatusNone) {
    (void)cudaGetLastError();
    return Status(
        GROUPED_INTERNAL,
        "group_sizes cannot be checked while a CUDA graph is captured, because the check waits for the "
        "device. Capture without GROUPED_CHECK=1.");
  }
  std::vector<char> bytes(static_cast<size_t>(sizes.count) * (sizes.is_64bit ? 8 : 4));
  cudaError_t error = asked;
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream_of(launch));
  if (error == cudaSuccess && !bytes.empty()) {
    error =
        cudaMemcpyAsync(bytes.data(), sizes.data, bytes.size(), cudaMemcpyDeviceToHost, stream_of(launch));
  }
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream_of(launch));
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return Status(GROUPED_INTERNAL, std::string("group_sizes could not be read for GROUPED_CHECK=1: ") +
                                        cudaGetErrorString(error));
  }
  GroupSizes on_host = sizes;
  on_host.data = bytes.data();
  std::vector<int64_t> offsets(static_cast<size_t>(sizes.count) + 1);
  return resolve_offsets(on_host, true, offsets.data());
}

}  // namespace grouped::cuda
