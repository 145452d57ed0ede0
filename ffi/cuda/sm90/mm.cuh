// SPDX-License-Identifier: Apache-2.0
// out[t] = round((x[t] @ W[g] + bias[g]) * row_scale[t]) for 16-bit x and W. A tile holds features down and
// rows of x across: wgmma takes 64 of the one but any multiple of 8 of the other, and it is the groups' rows
// that come in any number. A tile that overruns its group reads rows of the next one; they meet nothing but
// their own part of the accumulator, which is not stored.
#pragma once

#include <type_traits>

#include "common/launch.h"
#include "common/vector.cuh"
#include "portable/mm.cuh"
#include "sm90/block.cuh"
#include "sm90/heuristic.h"
#include "sm90/kernels.h"
#include "sm90/mm_ending.cuh"
#include "sm90/mm_schedule.cuh"
#include "sm90/tensor_map.h"

namespace grouped::cuda::sm90 {

template <typename T>
struct MmTensors {
  CUtensorMap x[4];       // in boxes of row_box() rows
  CUtensorMap weight[2];  // in boxes of a tile's features, and of half of them
  CUtensorMap out;
  MmParams<T> mm;
  GroupSizes sizes;
  MmOrder order;
  bool has_panels;  // weight[0] of [G,K,N] takes two panels of 64 features in one copy
};

// Rows of x that one copy fetches: few copies make half a tile's rows, a multiple of 16.
template <typename Shape>
__host__ __device__ constexpr int row_box(int i) {
  return i == 0 ? Shape::kMaxWidth / 2 : 128 >> i;
}

// 128 features of the weight, or half of them for both blocks.
template <typename T, Major kWeight>
class FeatureLoader {
 public:
  __device__ __forceinline__ FeatureLoader(const MmTensors<T>& p, const Tile& tile)
      : p_(p), group_(tile.group), feature_(tile.row), is_shared_(tile.shares_left()) {}
  bool skips = false;
  __device__ __forceinline__ uint32_t bytes(int) const { return kTileRows * kLineBytes; }

  template <typename EachStage>
  __device__ __forceinline__ void load(const EachStage& each_stage) const {
    if (is_shared_) {
      const int32_t half = static_cast<int32_t>(cluster_rank());
      const int32_t feature = feature_ + half * 64;
      each_stage([&](uint32_t to, uint32_t filled, int block) {
        const int32_t k = block * kReduceTile;
        load_box_to_both(to + half * kPanelBytes, p_.weight[1], filled,
                         kWeight == Major::kReduction ? k : feature,
                         kWeight == Major::kReduction ? feature : k, group_);
      });
    } else if (kWeight == Major::kReduction) {
      each_stage([&](uint32_t to, uint32_t filled, int block) {
        load_box(to, p_.weight[0], filled, block * kReduceTile, feature_, group_);
      });
    } else if (p_.has_panels) {
      const int32_t panel = feature_ / 64;
      each_stage([&](uint32_t to, uint32_t filled, int block) {
        load_box(to, p_.weight[0], filled, 0, block * kReduceTile, panel, group_);
      });
    } else {
      each_stage([&](uint32_t to, uint32_t filled, int block) {
        load_box(to, p_.weight[1], filled, feature_, block * kReduceTile, group_);
        load_box(to + kPanelBytes, p_.weight[1], filled, feature_ + 64, block * kReduceTile, group_);
      });
    }
  }

 private:
  const MmTensors<T>& p_;
  int32_t group_, feature_;
  bool is_shared_;
};

// The tile's rows of x, or half of them for both blocks.
template <typename T, typename Shape>
class RowLoader {
 public:
  __device__ __forceinline__ RowLoader(const MmTensors<T>& p, const Tile& tile)
      : p_(p), row_(tile.first_token), count_(tile.width), is_shared_(tile.shares_right()) {
    bytes_ = tile.width * kLineBytes;
    if (is_shared_) {
      count_ /= 2;
      if (cluster_rank() != 0) {
        offset_ = count_ * kLineBytes;
        row_ += count_;
      }
    }
  }
  bool skips = false;
  __device__ __forceinline__ uint32_t bytes(int) const { return bytes_; }

  template <typename EachStage>
  __device__ __forceinline__ void load(const EachStage& each_stage) const {
    if (is_shared_) {
      each_stage([&](uint32_t to, uint32_t filled, int block) {
        load_rows(to, block, [&](uint32_t at, const CUtensorMap& map, int32_t k, int32_t row) {
          load_box_to_both(at, map, filled, k, row);
        });
      });
    } else {
      each_stage([&](uint32_t to, uint32_t filled, int block) {
        load_rows(to, block, [&](uint32_t at, const CUtensorMap& map, int32_t k, int32_t row) {
          load_box(at, map, filled, k, row);
        });
      });
    }
  }

 private:
  // In the fewest copies.
  template <typename Copy>
  __device__ __forceinline__ void load_rows(uint32_t to, int block, const Copy& copy) const {
    int32_t row = row_;
    uint32_t at = to + offset_;
    int rest = count_;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll 1
      while (rest >= row_box<Shape>(i)) {
        copy(at, p_.x[i], block * kReduceTile, row);
        row += row_box<Shape>(i);
        at += row_box<Shape>(i) * kLineBytes;
        rest -= row_box<Shape>(i);
      }
    }
  }

  const MmTensors<T>& p_;
  int32_t row_, count_;
  bool is_shared_;
  uint32_t bytes_;
  uint32_t offset_ = 0;
};

// kWeight: kReduction reads [G,N,K], kOuter reads [G,K,N].
template <typename T, typename TileShape, Major kWeight, MmResult kResult>
class MmWork {
 public:
  using Shape = TileShape;
  using LeftLoader = FeatureLoader<T, kWeight>;
  using RightLoader = RowLoader<T, Shape>;
  using Element = T;
  using Params = MmTensors<T>;
  static constexpr Major kLeft = kWeight, kRight = Major::kReduction;
  static constexpr bool kCutsReduction = false, kOldThroughRing = false;
  // Finer than what is fetched: rows past the group's end cost time, and power.
  static constexpr int kMultiplyStep = kWidthStep / 2;
  __device__ __forceinline__ static int columns_to_multiply(const Tile& tile) { return tile.num_tokens; }

  __device__ __forceinline__ explicit MmWork(const Params& p) : p_(p) {}

  __device__ __forceinline__ const Params& params() const { return p_; }
  __device__ __forceinline__ void prefetch() const {
    for (const CUtensorMap& map : p_.x) prefetch_tensor_map(map);
    if (kWeight == Major::kReduction || p_.has_panels) prefetch_tensor_map(p_.weight[0]);
    prefetch_tensor_map(p_.weight[1]);
    prefetch_tensor_map(p_.out);
  }
  __device__ __forceinline__ void schedule(Shared<Shape> shared, TileQueue<Shape>& queue) const {
    schedule_mm(p_.sizes, p_.mm.N, static_cast<int32_t>((p_.mm.K + kReduceTile - 1) / kReduceTile), p_.order,
                shared, queue);
  }
  __device__ __forceinline__ void side_work(Shared<Shape>) const {
    if (!p_.mm.zero_tail) return;
    mm_zero_tail(p_.mm, last_row(p_.sizes), blockIdx.x * int64_t{32} + threadIdx.x % 32,
                 gridDim.x * int64_t{32});
  }
  __device__ __forceinline__ void prepare(const Tile&, const Staging<Shape>&) const {}

  __device__ __forceinline__ void finish(const Tile& tile, int index, const Accumulators<Shape>& acc,
                                         Shared<Shape>, Staging<Shape>& staging, RingReader<Shape>&,
                                         int) const {
    MmEnding<T, Shape, kResult>(p_.mm, p_.out, tile, index, staging).run(acc);
  }

 private:
  const Params& p_;
};

template <typename Work>
__global__ void __launch_bounds__(kThreads, 1) mm_kernel(const __grid_constant__ typename Work::Params p) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  run_block<Work>(p, shared_memory);
}

template <typename T, typename Shape, Major kWeight>
Status launch_mm(const MmTensors<T>& params, int64_t tiles, const Launch& launch) {
  const auto launch_as = [&](auto result) {
    using Work = MmWork<T, Shape, kWeight, decltype(result)::value>;
    // Without counters what is in front of it is not ours.
    const Begin begin = params.order.counters == nullptr ? Begin::kBehind : Begin::kBeside;
    return launch_block<Work>(mm_kernel<Work>, tiles, params, launch, begin);
  };
  if (params.mm.out.is_wide) return launch_as(std::integral_constant<MmResult, MmResult::kWide>());
  return params.mm.bias.data == nullptr && params.mm.row_scale.data == nullptr
             ? launch_as(std::integral_constant<MmResult, MmResult::kPlain>())
             : launch_as(std::integral_constant<MmResult, MmResult::kFinished>());
}

template <typename T, typename Shape>
Status mm_in(const MmProblem& p, const Config& config, const Launch& launch) {
  MmTensors<T> params;
  params.mm = mm_params<T>(p, RowMap{});
  params.sizes = p.sizes;
  params.order = {config.cuts_evenly, config.in_order, nullptr};
  params.has_panels = p.weight_is_gkn && p.N % 64 == 0;
  TensorMaps maps(p.in, false);
  for (int i = 0; i < 4; ++i) maps.add(&params.x[i], p.x, {p.K, p.T}, {kReduceTile, row_box<Shape>(i)});
  for (int i = 0; i < 2; ++i) {
    const int features = kTileRows >> i;
    if (p.weight_is_gkn) {
      if (i == 1) maps.add(&params.weight[i], p.weight, {p.N, p.K, p.G}, {features, kReduceTile, 1});
      if (i == 0 && params.has_panels)
        maps.add_panels(&params.weight[i], p.weight, {64, p.K, p.N / 64, p.G}, {p.N, 64, p.N * p.K},
                        {64, kReduceTile, 2, 1});
    } else {
      maps.add(&params.weight[i], p.weight, {p.K, p.N, p.G}, {kReduceTile, features, 1});
    }
  }
  const bool is_wide = p.out_dtype == DType::kF32;
  using Wide = MmEnding<T, Shape, MmResult::kWide>;
  using Narrow = MmEnding<T, Shape, MmResult::kPlain>;
  maps.add(&params.out, p.out, {p.N, p.T},
           {is_wide ? Wide::kLineFeatures : Narrow::kLineFeatures,
            is_wide ? Wide::kPieceRows : Narrow::kPieceRows},
           p.out_dtype);
  if (!maps.status().ok()) return maps.status();
  const int64_t tiles =
      saturating_product(ceil_div(p.T, Shape::kMaxWidth) + p.G, ceil_div(p.N, kTileRows) + 1);
  if (config.on_demand) {
    params.order.counters = static_cast<PieceCounters*>(launch.workspace);
    const HandingOut handing_out = {num_clusters(tiles, kClusterBlocks, launch.device), false, {}};
    const Status prepared = prepare_counters(handing_out, launch, Begin::kBehind, params.order.counters);
    if (!prepared.ok()) return prepared;
  }
  return p.weight_is_gkn ? launch_mm<T, Shape, Major::kOuter>(params, tiles, launch)
                         : launch_mm<T, Shape, Major::kReduction>(params, tiles, launch);
}

template <typename T>
Status mm(const MmProblem& p, const Config& config, const Launch& launch) {
  return config.takes_turns ? mm_in<T, TakeTurns>(p, config, launch)
                            : mm_in<T, ShareTiles>(p, config, launch);
}

}  // namespace grouped::cuda::sm90
