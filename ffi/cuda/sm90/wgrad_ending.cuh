// SPDX-License-Identifier: Apache-2.0
// From accumulators to a grouped_wgrad's result, in pieces of 64 rows. What the result held before, if that
// is to be added, lies in stages of the ring: panels of 64 rows by 128 bytes, upper and lower half of the
// tile by turns.
#pragma once

#include "portable/wgrad.cuh"
#include "sm90/pack.cuh"
#include "sm90/wgrad_schedule.cuh"

namespace grouped::cuda::sm90 {

// Panels of both halves of the tile in one stage, side by side.
template <typename Shape>
inline constexpr int kOldPanels = Shared<Shape>::kStageBytes / (2 * kPanelBytes);

// An operand [T, columns], in copies of 64 rows by 64 columns (a panel), two panels, and 32 rows of a panel.
struct PanelMaps {
  CUtensorMap one, two, half;
  bool has_two;
};

template <typename T>
struct WgradTensors {
  PanelMaps left, right;
  CUtensorMap old, out;  // a panel of what out holds; a piece
  WgradParams<T> wgrad;
  WgradOrder order;
};

// kOverwrite, or kAccumulate onto what is in the ring; kZero: the group is empty, the accumulators hold
// nothing.
enum class WgradMode { kOverwrite, kAccumulate, kZero };

template <typename T, typename Shape, bool kWide, WgradMode kMode>
class WgradEnding {
  static constexpr int kElementBytes = kWide ? 4 : 2;
  static constexpr int kLineBytesOut = Shared<Shape>::kPieceBytes / 64;
  static constexpr int kColumns = kLineBytesOut / kElementBytes;  // of a piece
  static constexpr int kBlocks = kColumns / 8;                    // of accumulators
  static constexpr int kPiecesInPanel = kLineBytes / kLineBytesOut;
  static constexpr int kUnits = kLineBytesOut / 16;  // of 16 bytes, in a line of a piece
  static_assert(kLineBytesOut == 64 || kLineBytesOut == 128, "the copy engine swizzles these");

 public:
  __device__ __forceinline__ WgradEnding(const WgradTensors<T>& p, const Tile& tile, int index,
                                         Shared<Shape> shared, Staging<Shape>& staging,
                                         RingReader<Shape>& ring, int old_stage)
      : p_(p),
        tile_(tile),
        index_(index),
        shared_(shared),
        staging_(staging),
        ring_(ring),
        stage_(old_stage) {}

  __device__ __forceinline__ void run(const Accumulators<Shape>& acc) {
    constexpr int kPieces = Shape::kMaxWidth / kColumns;
    constexpr int kPiecesInStage = kOldPanels<Shape> * kPiecesInPanel;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      if (piece * kColumns >= tile_.width) break;
#pragma unroll
      for (int half = 0; half < Shape::kHalves; ++half) write(acc, piece, half, piece % kPiecesInStage);
      if constexpr (kMode == WgradMode::kAccumulate) {
        if (piece % kPiecesInStage == kPiecesInStage - 1 || (piece + 1) * kColumns >= tile_.width) {
          release();
        }
      }
    }
    while (released_ < tile_.old_stages()) release();
  }

 private:
  __device__ __forceinline__ void release() {
    __syncwarp();
    ring_.release(stage_);
    stage_ = ring_.after(stage_);
    ++released_;
  }

  // This thread's rows of a half of the tile: row() and row() + 8; its columns of a block of 8: column(),
  // + 1.
  __device__ __forceinline__ int row() const { return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4; }

  __device__ __forceinline__ static uint32_t piece_offset(int line, int unit) {
    if constexpr (kLineBytesOut == 128) return line_offset(line, unit);
    return line * 64 + ((unit ^ (line >> 1 & 3)) << 4);
  }

  // Columns of block `j`, row row() + upper * 8.
  __device__ __forceinline__ float2 value(const Accumulators<Shape>& acc, int piece, int half, int j,
                                          int upper, uint32_t old) const {
    if constexpr (kMode == WgradMode::kZero) return {0.0f, 0.0f};
    const int at = (piece * kBlocks + j) * 4 + upper * 2;
    const float2 v = {acc[half][at], acc[half][at + 1]};
    if constexpr (kMode == WgradMode::kOverwrite) return v;
    const int line = row() + upper * 8;
    const int first = piece % kPiecesInPanel * kUnits;  // unit
    const int lane = threadIdx.x % 4;
    float2 held;
    if constexpr (kWide) {
      held = load_shared_8(old + line_offset(line, first + j * 2 + lane / 2) + lane % 2 * 8);
    } else {
      held = unpacked<T>(load_shared_4(old + line_offset(line, first + j) + lane * 4));
    }
    return {add(held.x, v.x), add(held.y, v.y)};
  }

  __device__ __forceinline__ void write(const Accumulators<Shape>& acc, int piece, int half, int in_stage) {
    const int thread = threadIdx.x % 128;
    const int lane = thread % 32;
    const int tile_half = Shape::kHalves == 2 ? half : index_;
    const uint32_t old = shared_.left(stage_) + (in_stage / kPiecesInPanel * 2 + tile_half) * kPanelBytes;
    const uint32_t buffer = staging_.next();
    if constexpr (kWide) {
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          store_shared_8(buffer + piece_offset(row() + upper * 8, j * 2 + lane % 4 / 2) + lane % 2 * 8,
                         value(acc, piece, half, j, upper, old));
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < kBlocks; j += 2) {
        uint32_t m[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) m[i] = packed<T>(value(acc, piece, half, j + i / 2, i % 2, old));
        stmatrix_x4(buffer + piece_offset(thread / 32 * 16 + lane % 16, j + lane / 16), m[0], m[1], m[2],
                    m[3]);
      }
    }
    staging_.written();
    if (thread == 0)
      store_box(p_.out, buffer, tile_.column + piece * kColumns, tile_.row + tile_half * 64, tile_.group);
    staging_.sent();
  }

  const WgradTensors<T>& p_;
  const Tile& tile_;
  const int index_;
  const Shared<Shape> shared_;
  Staging<Shape>& staging_;
  RingReader<Shape>& ring_;
  int stage_;  // that holds the old values of the piece
  int released_ = 0;
};

}  // namespace grouped::cuda::sm90
