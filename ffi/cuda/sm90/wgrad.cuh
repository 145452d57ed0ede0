// SPDX-License-Identifier: Apache-2.0
// out[g] (+)= left_g^T right_g for 16-bit operands, summed from the group's first row on and cut at its end.
#pragma once

#include <type_traits>

#include "common/launch.h"
#include "portable/wgrad.cuh"
#include "sm90/block.cuh"
#include "sm90/heuristic.h"
#include "sm90/kernels.h"
#include "sm90/tensor_map.h"
#include "sm90/wgrad_ending.cuh"
#include "sm90/wgrad_lines_ending.cuh"
#include "sm90/wgrad_schedule.cuh"

namespace grouped::cuda::sm90 {

// The tile's columns of an operand, in panels of [64 rows][64 columns]. Of a shared one each block fetches
// half of the panels for both, and half of the one in the middle. Of the last block, if it has no more than
// 32 rows, only those.
class PanelLoader {
 public:
  __device__ __forceinline__ PanelLoader(const PanelMaps& maps, int column, int width, const Tile& tile,
                                         bool is_shared, int partner = 1)
      : maps_(maps), column_(column), token_(tile.first_token), is_shared_(is_shared) {
    int panels = tile.is_idle() ? 0 : (width + 63) / 64;
    bytes_ = panels * kPanelBytes;
    const int cut = tile.num_tokens % kReduceTile;
    short_block_ = cut > 0 && cut <= kReduceTile / 2 ? tile.num_blocks - 1 : -1;
    if (is_shared) {
      const int rank = static_cast<int>(cluster_rank()) / partner % 2;
      mask_ = static_cast<uint16_t>((1 << cluster_rank()) | (1 << (cluster_rank() ^ partner)));
      has_half_ = panels % 2 != 0;
      half_offset_ = panels / 2 * kPanelBytes + rank * (kPanelBytes / 2);
      half_column_ = column + panels / 2 * 64;
      half_row_ = rank * 32;
      const int first = rank == 0 ? 0 : (panels + 1) / 2;
      offset_ = first * kPanelBytes;
      column_ += first * 64;
      panels /= 2;
    }
    pairs_ = maps.has_two ? panels / 2 : 0;
    singles_ = panels - pairs_ * 2;
  }
  __device__ __forceinline__ uint32_t bytes(int block) const {
    return block == short_block_ ? bytes_ / 2 : bytes_;
  }

  template <typename EachStage>
  __device__ __forceinline__ void load(const EachStage& each_stage) const {
    if (is_shared_) {
      each_stage([&](uint32_t to, uint32_t filled, int block) {
        load_panels(to, block, [&](uint32_t at, const CUtensorMap& map, auto... coordinates) {
          load_box_to_both(at, map, filled, coordinates..., mask_);
        });
        if (has_half_ && !(block == short_block_ && half_row_ != 0))
          load_box_to_both(to + half_offset_, maps_.half, filled, half_column_, row(block) + half_row_, mask_);
      });
    } else {
      each_stage([&](uint32_t to, uint32_t filled, int block) {
        load_panels(to, block, [&](uint32_t at, const CUtensorMap& map, auto... coordinates) {
          load_box(at, map, filled, coordinates...);
        });
      });
    }
  }

 private:
  __device__ __forceinline__ int32_t row(int block) const { return token_ + block * kReduceTile; }

  template <typename Copy>
  __device__ __forceinline__ void load_panels(uint32_t to, int block, const Copy& copy) const {
    uint32_t at = to + offset_;
    int32_t column = column_;
    if (block == short_block_) {
#pragma unroll 1
      for (int i = 0; i < pairs_ * 2 + singles_; ++i) {
        copy(at, maps_.half, column, row(block));
        at += kPanelBytes;
        column += 64;
      }
      return;
    }
#pragma unroll 1
    for (int i = 0; i < pairs_; ++i) {
      copy(at, maps_.two, 0, row(block), column / 64);
      at += 2 * kPanelBytes;
      column += 128;
    }
#pragma unroll 1
    for (int i = 0; i < singles_; ++i) {
      copy(at, maps_.one, column, row(block));
      at += kPanelBytes;
      column += 64;
    }
  }

  const PanelMaps& maps_;
  int32_t column_, token_; uint16_t mask_ = 0;
  bool is_shared_, has_half_ = false;
  int pairs_, singles_;  // whole panels, two or one in a copy
  uint32_t bytes_, offset_ = 0, half_offset_ = 0;
  int32_t half_column_ = 0, half_row_ = 0;
  int short_block_;
};

template <typename T, typename Shape>
class WgradLeftLoader : public PanelLoader {
 public:
  __device__ __forceinline__ WgradLeftLoader(const WgradTensors<T>& p, const Tile& tile)
      : PanelLoader(p.left, tile.row, kTileRows, tile, true, 2), p_(p), tile_(tile) {}

  // Stage `i` of the panels that the result held.
  __device__ __forceinline__ void load_old(int i, uint32_t stage, uint32_t filled) const {
    const int first = i * kOldPanels<Shape>;
    const int panels = (tile_.width + panel_columns() - 1) / panel_columns();
    const int count = tile_.is_idle() ? 0 : max(0, min(panels - first, kOldPanels<Shape>));
    barrier_expect(filled, count * 2 * kPanelBytes);
    for (int panel = 0; panel < count; ++panel) {
      for (int half = 0; half < 2; ++half) {
        load_box(stage + (panel * 2 + half) * kPanelBytes, p_.old, filled,
                 tile_.column + (first + panel) * panel_columns(), tile_.row + half * 64, tile_.group);
      }
    }
  }

 private:
  __device__ __forceinline__ int panel_columns() const { return p_.wgrad.out.is_wide ? 32 : 64; }

  const WgradTensors<T>& p_;
  const Tile& tile_;
};

template <typename T>
class WgradRightLoader : public PanelLoader {
 public:
  __device__ __forceinline__ WgradRightLoader(const WgradTensors<T>& p, const Tile& tile)
      : PanelLoader(p.right, tile.column, tile.width, tile, true, 1) {}

  __device__ __forceinline__ void load_old(int, uint32_t, uint32_t filled) const { barrier_arrive(filled); }
};

// A kernel for each kind of result, as for mm (MmResult).
template <typename T, typename TileShape, bool kWide, bool kAdds>
class WgradWork {
 public:
  using Shape = TileShape;
  using Element = T;
  using Params = WgradTensors<T>;
  using LeftLoader = WgradLeftLoader<T, Shape>;
  using RightLoader = WgradRightLoader<T>;
  static constexpr Major kLeft = Major::kOuter, kRight = Major::kOuter;
  static constexpr bool kCutsReduction = true;
  static constexpr bool kOldThroughRing = kAdds && Shape::kOldThroughRing;
  static constexpr int kMultiplyStep = kWidthStep;
  __device__ __forceinline__ static int columns_to_multiply(const Tile& tile) { return tile.width; }

  __device__ __forceinline__ explicit WgradWork(const Params& p) : p_(p) {}

  __device__ __forceinline__ const Params& params() const { return p_; }
  __device__ __forceinline__ void prefetch() const {
    for (const PanelMaps* maps : {&p_.left, &p_.right}) {
      prefetch_tensor_map(maps->one);
      if (maps->has_two) prefetch_tensor_map(maps->two);
      prefetch_tensor_map(maps->half);
    }
    if (kOldThroughRing) prefetch_tensor_map(p_.old);
    prefetch_tensor_map(p_.out);
  }
  __device__ __forceinline__ void schedule(Shared<Shape> shared, TileQueue<Shape>& queue) const {
    // Stages of the ring that the result's old panels fill.
    const auto old_stages = [](int32_t width) {
      if (!kOldThroughRing) return 0;
      const int panels = kWide ? width / 32 : (width + 63) / 64;
      return (panels + kOldPanels<Shape> - 1) / kOldPanels<Shape>;
    };
    schedule_wgrad<Shape>(p_.wgrad.map, p_.wgrad.rows, p_.wgrad.columns, kAdds, old_stages, p_.order, shared,
                          queue);
  }
  __device__ __forceinline__ void side_work(Shared<Shape> shared) const {
    if (!p_.order.asks_ahead || cluster_rank() != 0 || threadIdx.x % 32 != 0) return;
    const int32_t pieces =
        static_cast<int32_t>(p_.wgrad.map.G) * wgrad_pieces_of_group<Shape>(p_.wgrad.rows, p_.wgrad.columns);
    PieceFeed<Shape>(p_.order.counters, shared).give_ahead(pieces);
  }

  __device__ __forceinline__ void prepare(const Tile& tile, const Staging<Shape>& staging) const {
    if constexpr (kAdds && !kOldThroughRing)
      WgradEnding<T, Shape, kWide, kAdds>::fetch_first(p_, tile, staging);
  }

  __device__ __forceinline__ void finish(const Tile& tile, int index, const Accumulators<Shape>& acc,
                                         Shared<Shape> shared, Staging<Shape>& staging,
                                         RingReader<Shape>& ring, int old_stage) const {
    const auto end = [&](auto ending) {
      if (!kAdds && tile.num_blocks == 0) {
        ending.run_empty();
      } else {
        ending.run(acc);
      }
    };
    if constexpr (Shape::kSendsLines) {
      end(WgradLinesEnding<T, Shape, kWide>(p_, tile, index, shared));
    } else {
      end(WgradEnding<T, Shape, kWide, kAdds>(p_, tile, index, shared, staging, ring, old_stage));
    }
  }

 private:
  const Params& p_;
};

template <typename Work>
__global__ void __launch_bounds__(kThreads, 1) wgrad_kernel(const __grid_constant__ typename Work::Params p) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  run_block<Work>(p, shared_memory);
}

inline void add_panel_maps(TensorMaps& maps, PanelMaps* panels, const void* data, int64_t columns,
                           int64_t T) {
  maps.add(&panels->one, data, {columns, T}, {64, kReduceTile});
  maps.add(&panels->half, data, {columns, T}, {64, kReduceTile / 2});
  panels->has_two = columns % 64 == 0;
  if (panels->has_two)
    maps.add_panels(&panels->two, data, {64, T, columns / 64}, {columns, 64}, {64, kReduceTile, 2});
}

template <typename T, bool kAdds, typename Shape>
Status launch_wgrad(const WgradTensors<T>& params, int64_t tiles, const Launch& launch) {
  const auto launch_as = [&](auto is_wide) {
    using Work = WgradWork<T, Shape, decltype(is_wide)::value, kAdds>;
    return launch_block<Work>(wgrad_kernel<Work>, tiles, params, launch, Begin::kBeside);
  };
  return params.wgrad.out.is_wide ? launch_as(std::true_type()) : launch_as(std::false_type());
}

template <typename T, bool kAdds, typename Shape>
Status wgrad_in(const WgradProblem& p, const Config& config, const Launch& launch) {
  RowMap map;
  PieceCounters* counters = config.on_demand ? counters_behind_map(launch, p.G) : nullptr;
  // Where all clusters ask for the same pieces ahead, counters that are zero do, without a kernel to prepare
  // them.
  const bool needs_halves = config.on_demand && (!config.asks_ahead || config.from_both_ends);
  const Cleared cleared = needs_halves ? Cleared() : cleared_counters(counters);
  const Status mapped = make_ordered_row_map(p.sizes, kTileRows, launch, cleared, &map);
  if (!mapped.ok()) return mapped;
  WgradTensors<T> params;
  params.wgrad = wgrad_params<T>(p, map);
  const int64_t rows = params.wgrad.rows;
  const int64_t columns = params.wgrad.columns;
  const bool is_wide = p.out_dtype == DType::kF32;
  const int panel_columns = is_wide ? 32 : 64;
  constexpr int kPieceRows = 64 * Shape::kPieceHalves;
  constexpr int kPieceLineBytes = static_cast<int>(Shared<Shape>::kPieceBytes) / kPieceRows;
  TensorMaps maps(p.in, true);
  add_panel_maps(maps, &params.left, params.wgrad.left, rows, p.T);
  add_panel_maps(maps, &params.right, params.wgrad.right, columns, p.T);
  if (p.accumulate) maps.add(&params.old, p.out, {columns, rows, p.G}, {panel_columns, 64, 1}, p.out_dtype);
  if constexpr (Shape::kSendsLines) {
    maps.add_panels(&params.out, p.out, {panel_columns, rows, columns / panel_columns, p.G},
                    {columns, panel_columns, columns * rows},
                    {panel_columns, kLineRows, kLinePanels<Shape>, 1}, p.out_dtype);
  } else {
    maps.add(&params.out, p.out, {columns, rows, p.G}, {panel_columns * kPieceLineBytes / 128, kPieceRows, 1},
             p.out_dtype, kPieceLineBytes);
  }
  if (!maps.status().ok()) return maps.status();

  const int64_t per_group =
      saturating_product(ceil_div(rows, kTileRows), ceil_div(columns, Shape::kMaxWidth));
  const int64_t tiles = saturating_product(ceil_div(per_group, 4) * 4, p.G);
  params.order = {config.asks_ahead, config.band_rows, counters};
  if (needs_halves) {
    const HandingOut handing_out = {num_clusters(tiles, kClusterBlocks, launch.device),
                                    config.from_both_ends,
                                    {map, ceil_div(per_group, 4)}};
    const Status prepared = prepare_counters(handing_out, launch, Begin::kBeside, counters);
    if (!prepared.ok()) return prepared;
  }
  return launch_wgrad<T, kAdds, Shape>(params, tiles, launch);
}

template <typename T>
Status wgrad(const WgradProblem& p, const Config& config, const Launch& launch) {
  if (p.accumulate) {
    if (!config.takes_turns) return wgrad_in<T, true, ShareTiles>(p, config, launch);
    return config.large_buffers ? wgrad_in<T, true, TakeTurnsAddingLargeBuffers>(p, config, launch)
                                : wgrad_in<T, true, TakeTurnsAdding>(p, config, launch);
  }
  if (config.sends_lines) return wgrad_in<T, false, ShareTilesSendLines>(p, config, launch);
  if (!config.takes_turns) return wgrad_in<T, false, ShareTiles>(p, config, launch);
  return config.large_buffers ? wgrad_in<T, false, TakeTurnsLargeBuffers>(p, config, launch)
                              : wgrad_in<T, false, TakeTurns>(p, config, launch);
}

}  // namespace grouped::cuda::sm90
