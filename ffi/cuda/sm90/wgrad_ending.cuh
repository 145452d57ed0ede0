// SPDX-License-Identifier: Apache-2.0
// From accumulators to a grouped_wgrad's result, in pieces of 64 rows. What the result held before, if that
// is to be added, lies in stages of the ring, or is fetched piece by piece into the buffers through which the
// sums leave (Shape::kOldThroughRing). In the ring: panels of 64 rows by 128 bytes, upper and lower half of
// the tile by turns.
#pragma once

#include "portable/wgrad.cuh"
#include "sm90/pack.cuh"
#include "sm90/wgrad_schedule.cuh"

namespace grouped::cuda::sm90 {

// How many panels of each half of the tile one stage holds; those of the two halves alternate.
template <typename Shape>
inline constexpr int kOldPanels = Shared<Shape>::kStageBytes / (2 * kPanelBytes);

// An operand [T, columns], in copies of 64 rows by 64 columns (a panel), two panels, and 32 rows of a panel.
struct PanelMaps {
  CUtensorMap one, two, half, quarter;
  bool has_two;
};

template <typename T>
struct WgradTensors {
  PanelMaps left, right;
  CUtensorMap old, out;  // a panel of what out holds; a piece, to write or to read
  WgradParams<T> wgrad;
  WgradOrder order;
};

// Begins to fetch piece `piece` of what the tile's result held, if there is one, into the buffer `ahead`
// behind the next. Pieces of the tile's halves alternate. By the thread that sends the pieces.
template <int kColumns, typename T, typename Shape>
__device__ __forceinline__ void fetch_old(const WgradTensors<T>& p, const Tile& tile,
                                          const Staging<Shape>& staging, int piece, int ahead) {
  static_assert(Shape::kHalves == 2, "pieces alternate");
  const int column = piece / 2 * kColumns;
  if (column >= tile.width) return;
  staging.fetch(ahead, [&](uint32_t to, uint32_t filled) {
    load_box(to, p.out, filled, tile.column + column, tile.row + piece % 2 * 64, tile.group);
  });
}

// kWide: fp32 results. kAdds: onto what the result held.
template <typename T, typename Shape, bool kWide, bool kAdds>
class WgradEnding {
  static constexpr bool kAddsInPlace = kAdds && !Shape::kOldThroughRing;
  static constexpr int kElementBytes = kWide ? 4 : 2;
  static constexpr int kHalfBytes = Shared<Shape>::kPieceBytes / Shape::kPieceHalves;  // of a piece
  static constexpr int kLineBytesOut = kHalfBytes / 64;
  static constexpr int kColumns = kLineBytesOut / kElementBytes;  // of a piece
  static constexpr int kBlocks = kColumns / 8;                    // of accumulators
  static constexpr int kPiecesInPanel = kLineBytes / kLineBytesOut;
  static constexpr int kColumnPieces = Shape::kMaxWidth / kColumns;
  static constexpr int kUnits = kLineBytesOut / 16;  // of 16 bytes, in a line of a piece
  static_assert(kLineBytesOut == 64 || kLineBytesOut == 128, "the copy engine swizzles these");
  // Pieces of what the result held that are on their way: one buffer is being written from.
  static constexpr int kFetchedAhead = Shape::kPieces - 1;

 public:
  // Begins to fetch the first ones, once those of the last tile have been sent.
  __device__ __forceinline__ static void fetch_first(const WgradTensors<T>& p, const Tile& tile,
                                                     const Staging<Shape>& staging) {
    if (threadIdx.x % 128 != 0) return;
    staging.wait_for_older();
#pragma unroll
    for (int piece = 0; piece < kFetchedAhead; ++piece) fetch_old<kColumns>(p, tile, staging, piece, piece);
  }

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
    constexpr int kPiecesInStage = kOldPanels<Shape> * kPiecesInPanel;
#pragma unroll
    for (int piece = 0; piece < kColumnPieces; ++piece) {
      if (piece * kColumns >= tile_.width) break;
#pragma unroll
      for (int half = 0; half < Shape::kHalves; half += Shape::kPieceHalves)
        write(acc, piece, half, piece % kPiecesInStage);
      if constexpr (kAdds && !kAddsInPlace) {
        if (piece % kPiecesInStage == kPiecesInStage - 1 || (piece + 1) * kColumns >= tile_.width) {
          release();
        }
      }
    }
    if constexpr (kAdds && !kAddsInPlace) {
      while (released_ < tile_.old_stages()) release();
    }
  }

  // Zeros, without the accumulators, which an empty group leaves as they were. A loop, because zeroing them
  // in a branch would make them spill.
  __device__ __forceinline__ void run_empty() {
#pragma unroll 1
    for (int piece = 0; piece * kColumns < tile_.width; ++piece) {
#pragma unroll 1
      for (int half = 0; half < Shape::kHalves; half += Shape::kPieceHalves) {
        const uint32_t buffer = staging_.next();
        for (uint32_t at = threadIdx.x % 128 * 16; at < Shared<Shape>::kPieceBytes; at += 128 * 16)
          zero_shared_16(buffer + at);
        staging_.written(piece, kColumnPieces);
        if (threadIdx.x % 128 == 0) {
          store_box(p_.out, buffer, tile_.column + piece * kColumns, tile_.row + tile_half(half) * 64,
                    tile_.group);
        }
        staging_.sent();
      }
    }
  }

 private:
  __device__ __forceinline__ int tile_half(int half) const { return Shape::kHalves == 2 ? half : index_; }

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
  __device__ __forceinline__ static float2 value(const Accumulators<Shape>& acc, int piece, int half, int j,
                                                 int upper) {
    const int at = (piece * kBlocks + j) * 4 + upper * 2;
    return {acc[half][at], acc[half][at + 1]};
  }
  // The same of what the result held, from its panel.
  __device__ __forceinline__ float2 held(uint32_t panel, int piece, int j, int upper) const {
    const int line = row() + upper * 8;
    const int first = piece % kPiecesInPanel * kUnits;  // unit
    const int lane = threadIdx.x % 4;
    if constexpr (kWide)
      return load_shared_8(panel + line_offset(line, first + j * 2 + lane / 2) + lane % 2 * 8);
    return unpacked<T>(load_shared_4(panel + line_offset(line, first + j) + lane * 4));
  }
  __device__ __forceinline__ static float2 sum(float2 held, float2 v) {
    return {add(held.x, v.x), add(held.y, v.y)};
  }

  // Where this thread's columns of block `j` are in a piece of fp32; where the 16 bytes are that it names for
  // blocks `j` and j + 1 of 16-bit elements.
  __device__ __forceinline__ uint32_t at_wide(uint32_t buffer, int j, int upper) const {
    const int lane = threadIdx.x % 4;
    return buffer + piece_offset(row() + upper * 8, j * 2 + lane / 2) + lane % 2 * 8;
  }
  __device__ __forceinline__ static uint32_t at_narrow(uint32_t buffer, int j) {
    const int thread = threadIdx.x % 128;
    const int lane = thread % 32;
    return buffer + piece_offset(thread / 32 * 16 + lane % 16, j + lane / 16);
  }

  // Adds to a fetched piece. All is read before anything is written: the compiler must keep their order, and
  // would wait for each read.
  __device__ __forceinline__ void add_in_place(const Accumulators<Shape>& acc, int piece, int half,
                                               uint32_t buffer) const {
    if constexpr (kWide) {
      float2 held[kBlocks][2];
#pragma unroll
      for (int i = 0; i < kBlocks * 2; ++i) held[i / 2][i % 2] = load_shared_8(at_wide(buffer, i / 2, i % 2));
#pragma unroll
      for (int i = 0; i < kBlocks * 2; ++i) {
        store_shared_8(at_wide(buffer, i / 2, i % 2),
                       sum(held[i / 2][i % 2], value(acc, piece, half, i / 2, i % 2)));
      }
    } else {
      uint32_t held[kBlocks / 2][4];
#pragma unroll
      for (int j = 0; j < kBlocks; j += 2) ldmatrix_x4<false>(held[j / 2], at_narrow(buffer, j));
      // The lane that names 16 bytes is not the one that reads them.
      __syncwarp();
#pragma unroll
      for (int j = 0; j < kBlocks; j += 2) {
        uint32_t m[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          m[i] = packed<T>(sum(unpacked<T>(held[j / 2][i]), value(acc, piece, half, j + i / 2, i % 2)));
        }
        stmatrix_x4(at_narrow(buffer, j), m[0], m[1], m[2], m[3]);
      }
    }
  }

  __device__ __forceinline__ void write_over(const Accumulators<Shape>& acc, int piece, int half,
                                             uint32_t panel, uint32_t buffer) const {
    const auto result = [&](int j, int upper) {
      const float2 v = value(acc, piece, half, j, upper);
      if constexpr (kAdds) return sum(held(panel, piece, j, upper), v);
      return v;
    };
    if constexpr (kWide) {
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) store_shared_8(at_wide(buffer, j, upper), result(j, upper));
      }
    } else {
#pragma unroll
      for (int j = 0; j < kBlocks; j += 2) {
        uint32_t m[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) m[i] = packed<T>(result(j + i / 2, i % 2));
        stmatrix_x4(at_narrow(buffer, j), m[0], m[1], m[2], m[3]);
      }
    }
  }

  __device__ __forceinline__ void write(const Accumulators<Shape>& acc, int piece, int half, int in_stage) {
    uint32_t buffer;
    if constexpr (kAddsInPlace) {
      buffer = staging_.fetched();
      add_in_place(acc, piece, half, buffer);
      staging_.added();
    } else {
      buffer = staging_.next();
#pragma unroll
      for (int i = 0; i < Shape::kPieceHalves; ++i) {
        const uint32_t old =
            shared_.left(stage_) + (in_stage / kPiecesInPanel * 2 + tile_half(half + i)) * kPanelBytes;
        write_over(acc, piece, half + i, old, buffer + i * kHalfBytes);
      }
      staging_.written(piece, kColumnPieces);
    }
    const int column = tile_.column + piece * kColumns;
    const int row = tile_.row + tile_half(half) * 64;
    const bool sends = threadIdx.x % 128 == 0;
    if (sends) store_box(p_.out, buffer, column, row, tile_.group);
    staging_.sent();
    if constexpr (kAddsInPlace) {
      // Into the buffer that the piece before this one left by.
      if (sends) {
        staging_.wait_for_older();
        fetch_old<kColumns>(p_, tile_, staging_, piece * 2 + half + kFetchedAhead, kFetchedAhead - 1);
      }
    }
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
