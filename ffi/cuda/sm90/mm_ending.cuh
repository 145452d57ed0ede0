// SPDX-License-Identifier: Apache-2.0
// From accumulators to rows of a grouped_mm's result. The accumulators hold the tile with features down and
// rows of the result across, so they are turned on their way through shared memory, one piece of rows at a
// time.
#pragma once

#include "portable/mm.cuh"
#include "sm90/pack.cuh"
#include "sm90/staging.cuh"

namespace grouped::cuda::sm90 {

// What a kernel writes. A kernel of its own for each: one that held all three was 2 to 8 % slower, because
// the multipliers' registers spilled and the code of a turn was longer.
enum class MmResult {
  kPlain,     // 16-bit sums
  kFinished,  // 16-bit, with bias or row_scale
  kWide       // fp32, with or without them
};

template <typename T, typename Shape, MmResult kResult>
class MmEnding {
  static constexpr bool kWide = kResult == MmResult::kWide;
  static constexpr bool kPlain = kResult == MmResult::kPlain;
  static constexpr int kLines = kWide ? 2 : 1;  // of 128 bytes, for 64 features

 public:
  // Of a piece, in each copy that it leaves by: one for each half of the tile and each line.
  static constexpr int kPieceRows = Shape::kPieceLines / Shape::kPieceHalves / kLines;
  static constexpr int kLineFeatures = 64 / kLines;

 private:
  static constexpr int kCopyBytes = kPieceRows * kLineBytes;
  static constexpr int kBlocks = kPieceRows / 8;  // of accumulators
  static constexpr int kPieces = Shape::kMaxWidth / kPieceRows;
  static_assert(Shape::kPieceHalves == Shape::kHalves, "a piece has all of the multiplier's features");

 public:
  __device__ __forceinline__ MmEnding(const MmParams<T>& mm, const CUtensorMap& out, const Tile& tile,
                                      int index, Staging<Shape>& staging)
      : mm_(mm), out_(out), tile_(tile), index_(index), staging_(staging) {}

  __device__ __forceinline__ void run(const Accumulators<Shape>& acc) {
    fetch_bias();
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      if (piece * kPieceRows >= tile_.num_tokens) break;
      const uint32_t buffer = staging_.next();
#pragma unroll
      for (int half = 0; half < Shape::kHalves; ++half) {
        if (exists(half)) write(acc, piece, half, copy_at(buffer, half, 0));
      }
      staging_.written(piece, kPieces);
      send(piece, buffer);
      staging_.sent();
    }
  }

 private:
  __device__ __forceinline__ bool has_bias() const { return !kPlain && mm_.bias.data != nullptr; }
  __device__ __forceinline__ bool has_scale() const { return !kPlain && mm_.row_scale.data != nullptr; }

  __device__ __forceinline__ int first_feature(int half) const {
    return tile_.row + (Shape::kHalves == 2 ? half : index_) * 64;
  }
  // This thread's features of a half of the tile: feature() and feature() + 8.
  __device__ __forceinline__ int feature() const {
    return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  }
  // Its rows of a block of 8: row() and row() + 1.
  __device__ __forceinline__ int row() const { return threadIdx.x % 4 * 2; }

  __device__ __forceinline__ void fetch_bias() {
    if (!has_bias()) return;
#pragma unroll
    for (int i = 0; i < 2 * Shape::kHalves; ++i) {
      const int64_t at = first_feature(i / 2) + feature() + i % 2 * 8;
      bias_[i] = at < mm_.N ? mm_.bias[tile_.group * mm_.N + at] : 0.0f;
    }
  }
  // Of this thread's two rows of block `j` of the piece.
  __device__ __forceinline__ float2 scale(int piece, int j) const {
    if (!has_scale()) return {0.0f, 0.0f};
    const int at = (piece * kBlocks + j) * 8 + row();
    const int64_t row = int64_t{tile_.first_token} + at;
    return {at < tile_.num_tokens ? mm_.row_scale[row] : 0.0f,
            at + 1 < tile_.num_tokens ? mm_.row_scale[row + 1] : 0.0f};
  }

  // Two neighbouring rows of one feature, block `j` of the piece.
  __device__ __forceinline__ float2 value(const Accumulators<Shape>& acc, int piece, int half, int j,
                                          int upper, float2 scale) const {
    const int at = (piece * kBlocks + j) * 4 + upper * 2;
    const float bias = bias_[half * 2 + upper];
    return {mm_finish(acc[half][at], has_bias(), bias, has_scale(), scale.x),
            mm_finish(acc[half][at + 1], has_bias(), bias, has_scale(), scale.y)};
  }

  __device__ __forceinline__ bool exists(int half) const { return first_feature(half) < mm_.N; }
  // Where a copy of the piece in `buffer` lies.
  __device__ __forceinline__ static uint32_t copy_at(uint32_t buffer, int half, int line) {
    return buffer + (half * kLines + line) * kCopyBytes;
  }

  // The half's copies of the piece, from `to` on.
  __device__ __forceinline__ void write(const Accumulators<Shape>& acc, int piece, int half,
                                        uint32_t to) const {
    const int thread = threadIdx.x % 128;
    const int lane = thread % 32;
    if constexpr (kWide) {
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        const float2 by = scale(piece, j);
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          const float2 v = value(acc, piece, half, j, upper, by);
          const int at = feature() + upper * 8;
          const uint32_t lines = to + at / kLineFeatures * kCopyBytes;
          const int unit = at % kLineFeatures / 4;
          store_shared_4(lines + line_offset(j * 8 + row(), unit) + at % 4 * 4, v.x);
          store_shared_4(lines + line_offset(j * 8 + row() + 1, unit) + at % 4 * 4, v.y);
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < kBlocks; j += 2) {
        const float2 by[2] = {scale(piece, j), scale(piece, j + 1)};
        uint32_t m[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) m[i] = packed<T>(value(acc, piece, half, j + i / 2, i % 2, by[i / 2]));
        const int line = (j + lane / 16) * 8 + lane % 8;
        const int unit = thread / 32 * 2 + lane / 8 % 2;
        stmatrix_x4_transposed(to + line_offset(line, unit), m[0], m[1], m[2], m[3]);
      }
    }
  }

  __device__ __forceinline__ void send(int piece, uint32_t buffer) const {
    const int first = piece * kPieceRows;
    const int num_rows = tile_.num_tokens - first;
#pragma unroll
    for (int half = 0; half < Shape::kHalves; ++half) {
      if (!exists(half)) continue;
#pragma unroll
      for (int line = 0; line < kLines; ++line) {
        const int feature = first_feature(half) + line * kLineFeatures;
        if (num_rows < kPieceRows) {
          store_rows(copy_at(buffer, half, line), feature, first, num_rows);
        } else if (threadIdx.x % 128 == 0) {
          store_box(out_, copy_at(buffer, half, line), feature, tile_.first_token + first);
        }
      }
    }
  }

  // The last piece of a group row by row, because below it lies the next group.
  __device__ __forceinline__ void store_rows(uint32_t from, int first_feature, int first_row,
                                             int num_rows) const {
    constexpr int kElements = kLineFeatures / 8;  // in a unit of 16 bytes
#pragma unroll
    for (int i = 0; i < kCopyBytes / 16 / 128; ++i) {
      const int unit = threadIdx.x % 8;
      const int line = threadIdx.x % 128 / 8 + i * 16;
      const int64_t column = first_feature + unit * kElements;
      if (line >= num_rows || column >= mm_.N) continue;
      const int64_t row = int64_t{tile_.first_token} + first_row + line;
      static_cast<uint4*>(mm_.out.data)[(row * mm_.N + column) / kElements] =
          load_shared_16(from + line_offset(line, unit));
    }
  }

  const MmParams<T>& mm_;
  const CUtensorMap& out_;
  const Tile& tile_;
  const int index_;
  Staging<Shape>& staging_;
  float bias_[2 * Shape::kHalves];
};

}  // namespace grouped::cuda::sm90
