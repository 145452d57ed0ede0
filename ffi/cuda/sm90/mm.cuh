// SPDX-License-Identifier: Apache-2.0
// out[t] = round((x[t] @ W[g] + bias[g]) * row_scale[t]) for 16-bit x and W. A tile that overruns its group
// reads the rows of the next one; they meet nothing but their own rows of the accumulator, which are not
// stored.
#pragma once

#include "common/launch.h"
#include "common/vector.cuh"
#include "portable/mm.cuh"
#include "sm90/epilogue.cuh"
#include "sm90/heuristic.h"
#include "sm90/kernels.h"
#include "sm90/schedule.cuh"
#include "sm90/tensor_map.h"

namespace grouped::cuda::sm90 {

template <typename T>
struct MmTensors {
  CUtensorMap x, weight, out;
  MmParams<T> mm;
  bool pairs;  // mm.map was made by make_paired_row_map()
};

// What the epilogue needs of one tile. kPlain: neither bias nor row_scale.
template <typename T, bool kPlain>
class MmEnding {
 public:
  __device__ __forceinline__ MmEnding(const MmTensors<T>& p, const Tile& tile, int index)
      : p_(p), tile_(tile), index_(index), num_rows_(tile.num_rows - index * 64) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place_.row(half);
      scale_[half] = has_scale() && row < num_rows_ ? p.mm.row_scale[first_row() + row] : 0.0f;
    }
  }

  template <int kCount>
  __device__ __forceinline__ void prepare(int j) {
    if (!has_bias()) return;
#pragma unroll
    for (int jj = 0; jj < kCount; ++jj) {
      const int64_t column = tile_.column + place_.column(j + jj);
      const int64_t at = tile_.group * p_.mm.N + column;
      bias_[jj] = column < p_.mm.N ? float2{p_.mm.bias[at], p_.mm.bias[at + 1]} : float2{0.0f, 0.0f};
    }
  }

  __device__ __forceinline__ float2 value(int jj, int half, float2 v) const {
    return {mm_finish(v.x, has_bias(), bias_[jj].x, has_scale(), scale_[half]),
            mm_finish(v.y, has_bias(), bias_[jj].y, has_scale(), scale_[half])};
  }

  // A whole panel leaves in one copy; the last of a group row by row, because below it lies the next group.
  __device__ __forceinline__ void write(uint32_t panel, int column) const {
    const int thread = threadIdx.x % 128;
    if (num_rows_ >= 64) {
      if (thread == 0) store_box(p_.out, panel, tile_.column + column, static_cast<int32_t>(first_row()));
      return;
    }
    const int unit = thread % 8;
    const int unit_elements = p_.mm.out.is_wide ? 4 : 8;
    const int64_t first = tile_.column + column + unit * unit_elements;
    if (first >= p_.mm.N) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int line = thread / 8 + i * 16;
      if (line >= num_rows_) continue;
      const int64_t at = ((first_row() + line) * p_.mm.N + first) / unit_elements;
      static_cast<uint4*>(p_.mm.out.data)[at] = load_shared_16(panel + panel_offset(line, unit));
    }
  }

 private:
  __device__ __forceinline__ bool has_bias() const { return !kPlain && p_.mm.bias.data != nullptr; }
  __device__ __forceinline__ bool has_scale() const { return !kPlain && p_.mm.row_scale.data != nullptr; }
  __device__ __forceinline__ int64_t first_row() const { return int64_t{tile_.row} + index_ * 64; }

  const MmTensors<T>& p_;
  const Tile& tile_;
  const int index_;
  const int num_rows_;  // of this multiplier
  const Place place_;
  float scale_[2];
  float2 bias_[8];
};

// kWeight: kReduction reads [G,N,K], kOuter reads [G,K,N].
template <typename T, Major kWeight, int kTileColumns>
class MmWork {
 public:
  using Element = T;
  using Params = MmTensors<T>;
  static constexpr int kColumns = kTileColumns;
  static constexpr Major kLeft = Major::kReduction, kRight = kWeight;
  static constexpr bool kCutsReduction = false;

  __device__ __forceinline__ explicit MmWork(const Params& p) : p_(p) {}

  __device__ __forceinline__ void prefetch() const {
    prefetch_tensor_map(p_.x);
    prefetch_tensor_map(p_.weight);
    prefetch_tensor_map(p_.out);
  }
  __device__ __forceinline__ void schedule(TileQueue<kColumns>& queue) const {
    const int64_t num_blocks = (p_.mm.K + kReduceTile - 1) / kReduceTile;
    if (p_.pairs) {
      schedule_row_pairs(p_.mm.map, p_.mm.N, num_blocks, queue);
    } else {
      schedule_rows(p_.mm.map, p_.mm.N, num_blocks, queue);
    }
  }
  __device__ __forceinline__ void side_work(int thread, int threads) const {
    mm_zero_tail(p_.mm, blockIdx.x * static_cast<int64_t>(threads) + thread,
                 gridDim.x * static_cast<int64_t>(threads));
  }

  __device__ __forceinline__ void load(const Tile& tile, int block, uint32_t left, uint32_t right,
                                       uint32_t filled) const {
    // x in two boxes of 64 rows, the weight in boxes of kBoxColumns columns; of an operand that both blocks
    // need, each fetches its half for both.
    constexpr int kBoxColumns = kWeight == Major::kReduction ? kColumns / 2 : 64;
    constexpr int kBoxes = kColumns / kBoxColumns;
    const int rank = static_cast<int>(cluster_rank());
    const int k = block * kReduceTile;
    if (tile.shares_left()) {
      load_box(left + rank * kPanelBytes, p_.x, filled, k, tile.row + rank * 64, 3);
    } else {
      load_box(left, p_.x, filled, k, tile.row, 0);
      load_box(left + kPanelBytes, p_.x, filled, k, tile.row + 64, 0);
    }
    const int first = tile.shares_right() ? rank * (kBoxes / 2) : 0;
    const int count = tile.shares_right() ? kBoxes / 2 : kBoxes;
    const uint16_t mask = tile.shares_right() ? 3 : 0;
    for (int box = first; box < first + count; ++box) {
      const int column = tile.column + box * kBoxColumns;
      const uint32_t at = right + box * kBoxColumns * kLineBytes;
      if constexpr (kWeight == Major::kReduction) {
        load_box(at, p_.weight, filled, k, column, tile.group, mask);
      } else {
        load_box(at, p_.weight, filled, column, k, tile.group, mask);
      }
    }
  }

  __device__ __forceinline__ void finish(const Tile& tile, int index, const float (&acc)[kColumns / 2],
                                         uint32_t staging, RingReader<kColumns>&) const {
    if (tile.num_rows <= index * 64) return;
    if (p_.mm.bias.data == nullptr && p_.mm.row_scale.data == nullptr) {
      finish_as<true>(tile, index, acc, staging);
    } else {
      finish_as<false>(tile, index, acc, staging);
    }
  }

 private:
  template <bool kPlain>
  __device__ __forceinline__ void finish_as(const Tile& tile, int index, const float (&acc)[kColumns / 2],
                                            uint32_t staging) const {
    MmEnding<T, kPlain> ending(p_, tile, index);
    const int64_t rest = p_.mm.N - tile.column;
    const int columns = rest < kColumns ? static_cast<int>(rest) : kColumns;
    if (p_.mm.out.is_wide) {
      write_panels<T, true, kColumns>(acc, columns, index, staging, ending);
    } else {
      write_panels<T, false, kColumns>(acc, columns, index, staging, ending);
    }
  }

  const Params& p_;
};

template <typename Work>
__global__ void __launch_bounds__(kThreads, 1) mm_kernel(const __grid_constant__ typename Work::Params p) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  run_block<Work>(p, shared_memory);
}

template <typename Work>
Status launch_mm(const MmProblem& p, const typename Work::Params& params, const Config& config,
                 const Launch& launch) {
  static std::atomic<uint64_t> shared_memory_allowed{0};
  const auto kernel = mm_kernel<Work>;
  constexpr int kBytes = Shared<Work::kColumns>::kBytes;
  const Status allowed = allow_shared_memory(kernel, kBytes, launch.device, shared_memory_allowed);
  if (!allowed.ok()) return allowed;
  const int64_t columns = ceil_div(p.N, Work::kColumns);
  const int64_t tiles = saturating_product(ceil_div(p.T, kTileRows) + p.G, columns + columns % 2);
  return launch_clusters(kernel, tiles, config.cluster, dim3(kThreads), kBytes, launch, params);
}

template <typename T>
Status mm(const MmProblem& p, const Launch& launch) {
  const Config config = mm_config(p.K, p.N, p.weight_is_gkn);
  RowMap map;
  const Status mapped =
      config.pairs ? make_paired_row_map(p.sizes, kTileRows, ceil_div(p.N, config.columns), launch, &map)
                   : make_row_map(p.sizes, kTileRows, launch, &map);
  if (!mapped.ok()) return mapped;
  MmTensors<T> params;
  params.mm = mm_params<T>(p, map);
  params.pairs = config.pairs;
  TensorMaps maps(p.in);
  maps.add(&params.x, p.x, {p.K, p.T}, {kReduceTile, kTileRows / 2});
  if (p.weight_is_gkn) {
    maps.add(&params.weight, p.weight, {p.N, p.K, p.G}, {64, kReduceTile, 1});
  } else {
    maps.add(&params.weight, p.weight, {p.K, p.N, p.G}, {kReduceTile, config.columns / 2, 1});
  }
  maps.add(&params.out, p.out, {p.N, p.T}, {p.out_dtype == DType::kF32 ? 32 : 64, 64}, p.out_dtype);
  if (!maps.status().ok()) return maps.status();
  if (p.weight_is_gkn) {
    return config.columns == 256 ? launch_mm<MmWork<T, Major::kOuter, 256>>(p, params, config, launch)
                                 : launch_mm<MmWork<T, Major::kOuter, 128>>(p, params, config, launch);
  }
  return config.columns == 256 ? launch_mm<MmWork<T, Major::kReduction, 256>>(p, params, config, launch)
                               : launch_mm<MmWork<T, Major::kReduction, 128>>(p, params, config, launch);
}

}  // namespace grouped::cuda::sm90
