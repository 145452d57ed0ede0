// SPDX-License-Identifier: Apache-2.0
// out[g] (+)= left_g^T right_g for 16-bit operands, summed from the group's first row on and cut at its end.
#pragma once

#include "common/launch.h"
#include "portable/wgrad.cuh"
#include "sm90/epilogue.cuh"
#include "sm90/heuristic.h"
#include "sm90/kernels.h"
#include "sm90/schedule.cuh"
#include "sm90/tensor_map.h"

namespace grouped::cuda::sm90 {

template <typename T>
struct WgradTensors {
  CUtensorMap left, right, out;
  WgradParams<T> wgrad;
};

// kAccumulate: what the result held comes through the ring behind the operands, in the panels in which it
// will leave. kZero: the group is empty, the accumulators hold nothing.
enum class WgradMode { kOverwrite, kAccumulate, kZero };

template <typename T, int kColumns, WgradMode kMode>
class WgradEnding {
  static constexpr bool kAccumulate = kMode == WgradMode::kAccumulate;

 public:
  __device__ __forceinline__ WgradEnding(const WgradTensors<T>& p, const Tile& tile, int index,
                                         RingReader<kColumns>& ring)
      : p_(p), tile_(tile), index_(index), ring_(ring) {}

  template <int kCount>
  __device__ __forceinline__ void prepare(int j) {
    if constexpr (kAccumulate) {
      constexpr int kPanels = Shared<kColumns>::kPanels;
      const int in_stage = j / kCount % kPanels;
      if (in_stage == 0) stage_ = ring_.next();
      const uint32_t panel = ring_.panel(stage_, in_stage);
      const int lane = threadIdx.x % 32;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int jj = 0; jj < kCount; ++jj) {
          if constexpr (kCount == 4) {
            old_[jj][half] =
                load_shared_8(panel + panel_offset(place_.row(half), jj * 2 + lane % 4 / 2) + lane % 2 * 8);
          } else {
            old_[jj][half] =
                unpacked<T>(load_shared_4(panel + panel_offset(place_.row(half), jj) + lane % 4 * 4));
          }
        }
      }
      if (in_stage == kPanels - 1 || j + kCount == kColumns / 8) {
        __syncwarp();
        ring_.release(stage_);
      }
    }
  }

  __device__ __forceinline__ float2 value(int jj, int half, float2 v) const {
    if constexpr (kMode == WgradMode::kZero) return {0.0f, 0.0f};
    if constexpr (kAccumulate) return {add(old_[jj][half].x, v.x), add(old_[jj][half].y, v.y)};
    return v;
  }

  __device__ __forceinline__ void write(uint32_t panel, int column) const {
    if (threadIdx.x % 128 == 0)
      store_box(p_.out, panel, tile_.column + column, tile_.row + index_ * 64, tile_.group);
  }

 private:
  const WgradTensors<T>& p_;
  const Tile& tile_;
  const int index_;
  RingReader<kColumns>& ring_;
  const Place place_;
  int stage_ = 0;
  float2 old_[8][2];
};

template <typename T, int kTileColumns>
class WgradWork {
 public:
  using Element = T;
  using Params = WgradTensors<T>;
  static constexpr int kColumns = kTileColumns;
  static constexpr Major kLeft = Major::kOuter, kRight = Major::kOuter;
  static constexpr bool kCutsReduction = true;

  __device__ __forceinline__ explicit WgradWork(const Params& p) : p_(p) {}

  __device__ __forceinline__ void prefetch() const {
    prefetch_tensor_map(p_.left);
    prefetch_tensor_map(p_.right);
    prefetch_tensor_map(p_.out);
  }
  __device__ __forceinline__ void schedule(TileQueue<kColumns>& queue) const {
    schedule_groups(p_.wgrad.map, p_.wgrad.rows, p_.wgrad.columns, p_.wgrad.accumulate, queue);
  }
  __device__ __forceinline__ void side_work(int, int) const {}

  __device__ __forceinline__ bool accumulates() const { return p_.wgrad.accumulate; }
  // Of the result's tile, for each multiplier.
  __device__ __forceinline__ int panels() const { return kColumns / (p_.wgrad.out.is_wide ? 32 : 64); }
  __device__ __forceinline__ void load_old(const Tile& tile, int first, int count, uint32_t stage,
                                           uint32_t filled) const {
    const int panel_columns = p_.wgrad.out.is_wide ? 32 : 64;
    for (int i = 0; i < count; ++i) {
      for (int index = 0; index < kMultipliers; ++index) {
        load_box(stage + (i * kMultipliers + index) * kPanelBytes, p_.out, filled,
                 tile.column + (first + i) * panel_columns, tile.row + index * 64, tile.group, 0);
      }
    }
  }

  __device__ __forceinline__ void load(const Tile& tile, int block, uint32_t left, uint32_t right,
                                       uint32_t filled) const {
    constexpr int kPanels = kColumns / 64;
    const int token = tile.first_token + block * kReduceTile;
#pragma unroll
    for (int panel = 0; panel < kTileRows / 64; ++panel)
      load_box(left + panel * kPanelBytes, p_.left, filled, tile.row + panel * 64, token, 0);
    const bool is_shared = tile.shares_right();
    const int first = is_shared ? static_cast<int>(cluster_rank()) * (kPanels / 2) : 0;
    const int count = is_shared ? kPanels / 2 : kPanels;
    const uint16_t mask = is_shared ? 3 : 0;
    for (int panel = first; panel < first + count; ++panel)
      load_box(right + panel * kPanelBytes, p_.right, filled, tile.column + panel * 64, token, mask);
  }

  __device__ __forceinline__ void finish(const Tile& tile, int index, const float (&acc)[kColumns / 2],
                                         uint32_t staging, RingReader<kColumns>& ring) const {
    if (p_.wgrad.accumulate) {
      finish_as<WgradMode::kAccumulate>(tile, index, acc, staging, ring);
    } else if (tile.num_blocks == 0) {
      finish_as<WgradMode::kZero>(tile, index, acc, staging, ring);
    } else {
      finish_as<WgradMode::kOverwrite>(tile, index, acc, staging, ring);
    }
  }

 private:
  template <WgradMode kMode>
  __device__ __forceinline__ void finish_as(const Tile& tile, int index, const float (&acc)[kColumns / 2],
                                            uint32_t staging, RingReader<kColumns>& ring) const {
    WgradEnding<T, kColumns, kMode> ending(p_, tile, index, ring);
    const int64_t rest = p_.wgrad.columns - tile.column;
    // All panels that came through the ring must be taken from it.
    const int columns =
        kMode != WgradMode::kAccumulate && rest < kColumns ? static_cast<int>(rest) : kColumns;
    if (p_.wgrad.out.is_wide) {
      write_panels<T, true, kColumns>(acc, columns, index, staging, ending);
    } else {
      write_panels<T, false, kColumns>(acc, columns, index, staging, ending);
    }
  }

  const Params& p_;
};

template <typename Work>
__global__ void __launch_bounds__(kThreads, 1) wgrad_kernel(const __grid_constant__ typename Work::Params p) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  run_block<Work>(p, shared_memory);
}

template <typename Work>
Status launch_wgrad(const typename Work::Params& params, const Config& config, const Launch& launch) {
  static std::atomic<uint64_t> shared_memory_allowed{0};
  const auto kernel = wgrad_kernel<Work>;
  constexpr int kBytes = Shared<Work::kColumns>::kBytes;
  const Status allowed = allow_shared_memory(kernel, kBytes, launch.device, shared_memory_allowed);
  if (!allowed.ok()) return allowed;
  const int64_t per_group = saturating_product(ceil_div(params.wgrad.rows, kTileRows),
                                               ceil_div(params.wgrad.columns, Work::kColumns));
  const int64_t tiles =
      saturating_product(ceil_div(per_group, config.cluster) * config.cluster, params.wgrad.map.G);
  return launch_clusters(kernel, tiles, config.cluster, dim3(kThreads), kBytes, launch, params);
}

template <typename T>
Status wgrad(const WgradProblem& p, const Launch& launch) {
  const Config config = wgrad_config(p.K, p.N, p.out_is_gkn);
  RowMap map;
  const Status mapped = make_ordered_row_map(p.sizes, kTileRows, launch, &map);
  if (!mapped.ok()) return mapped;
  WgradTensors<T> params;
  params.wgrad = wgrad_params<T>(p, map);
  params.wgrad.pairs = true;
  const int64_t rows = params.wgrad.rows;
  const int64_t columns = params.wgrad.columns;
  TensorMaps maps(p.in);
  maps.add(&params.left, params.wgrad.left, {rows, p.T}, {64, kReduceTile});
  maps.add(&params.right, params.wgrad.right, {columns, p.T}, {64, kReduceTile});
  maps.add(&params.out, p.out, {columns, rows, p.G}, {p.out_dtype == DType::kF32 ? 32 : 64, 64, 1},
           p.out_dtype);
  if (!maps.status().ok()) return maps.status();
  return config.columns == 256 ? launch_wgrad<WgradWork<T, 256>>(params, config, launch)
                               : launch_wgrad<WgradWork<T, 128>>(params, config, launch);
}

}  // namespace grouped::cuda::sm90
