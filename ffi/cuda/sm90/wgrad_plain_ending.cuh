// SPDX-License-Identifier: Apache-2.0
// From accumulators to a grouped_wgrad's result by plain stores: each warp turns its own 16 rows of it, so
// many bytes of each, in its own corner of shared memory, and writes whole lines (Shape::kStoresPlainly).
#pragma once

#include "sm90/wgrad_ending.cuh"

namespace grouped::cuda::sm90 {

template <typename T, typename Shape, bool kWide>
class WgradPlainEnding {
  static constexpr int kElementBytes = kWide ? 4 : 2;
  static constexpr int kRows = 16;
  static constexpr int kWarpBytes = Shape::kPieces * Shape::kPieceLines * kLineBytes / 4;
  static constexpr int kPanels = kWarpBytes / (kRows * kLineBytes);  // of 128 bytes
  static constexpr int kUnits = kPanels * 8;                         // of 16 bytes, in a row
  static constexpr int kPanelColumns = kLineBytes / kElementBytes;
  static constexpr int kColumns = kPanels * kPanelColumns;
  static constexpr int kBlocks = kColumns / 8;
  static constexpr int kColumnPieces = Shape::kMaxWidth / kColumns;
  static constexpr int kElements = 16 / kElementBytes;  // in a unit

 public:
  __device__ __forceinline__ WgradPlainEnding(const WgradTensors<T>& p, const Tile& tile, int index,
                                              Shared<Shape> shared)
      : p_(p), tile_(tile), index_(index), buffer_(shared.staging(index) + warp() * kWarpBytes) {}

  __device__ __forceinline__ void run(const Accumulators<Shape>& acc) const {
#pragma unroll
    for (int half = 0; half < Shape::kHalves; ++half) {
      uint4* const row = first_row(half);
#pragma unroll
      for (int piece = 0; piece < kColumnPieces; ++piece) {
        if (piece * kColumns >= tile_.width) break;
        __syncwarp();  // all have read what was here before
        write(acc[half], piece);
        __syncwarp();
        store(row, half, piece, [&](int line, int unit) { return load_shared_16(at(line, unit)); });
      }
    }
  }
  __device__ __forceinline__ void run_empty() const {
#pragma unroll 1
    for (int half = 0; half < Shape::kHalves; ++half) {
      uint4* const row = first_row(half);
#pragma unroll 1
      for (int piece = 0; piece * kColumns < tile_.width; ++piece)
        store(row, half, piece, [&](int, int) { return make_uint4(0, 0, 0, 0); });
    }
  }

 private:
  __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }
  __device__ __forceinline__ static int warp() { return threadIdx.x % 128 / 32; }
  __device__ __forceinline__ int row_of(int half) const {
    return tile_.row + (Shape::kHalves == 2 ? half : index_) * 64 + warp() * kRows;
  }
  __device__ __forceinline__ int columns() const { return static_cast<int>(p_.wgrad.columns) / kElements; }
  // This lane's first unit of the first line.
  __device__ __forceinline__ uint4* first_row(int half) const {
    const int64_t row = tile_.group * p_.wgrad.rows + row_of(half) + lane() / kUnits;
    return static_cast<uint4*>(p_.wgrad.out.data) + row * columns() + tile_.column / kElements + lane() % kUnits;
  }
  __device__ __forceinline__ uint32_t at(int row, int unit) const {
    return buffer_ + unit / 8 * (kRows * kLineBytes) + line_offset(row, unit % 8);
  }

  __device__ __forceinline__ void write(const float (&acc)[Shape::kMaxWidth / 2], int piece) const {
    const auto value = [&](int block, int lower) -> float2 {
      const int first = (piece * kBlocks + block) * 4 + lower * 2;
      return {acc[first], acc[first + 1]};
    };
    if constexpr (kWide) {
#pragma unroll
      for (int i = 0; i < kBlocks * 2; ++i) {
        store_shared_8(at(lane() / 4 + i % 2 * 8, i / 2 * 2 + lane() % 4 / 2) + lane() % 2 * 8,
                       value(i / 2, i % 2));
      }
    } else {
#pragma unroll
      for (int block = 0; block < kBlocks; block += 2) {
        uint32_t m[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) m[i] = packed<T>(value(block + i / 2, i % 2));
        stmatrix_x4(at(lane() % 16, block + lane() / 16), m[0], m[1], m[2], m[3]);
      }
    }
  }

  template <typename Value>
  __device__ __forceinline__ void store(uint4* to, int half, int piece, const Value& value) const {
    constexpr int kLines = 32 / kUnits;  // that a warp writes at once
    const int lines = min(kRows, static_cast<int>(p_.wgrad.rows) - row_of(half));
    const bool has_column = tile_.column / kElements + piece * kUnits + lane() % kUnits < columns();
    constexpr int kBatch = 2;
#pragma unroll
    for (int first = 0; first < kRows / kLines; first += kBatch) {
      uint4 v[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) v[i] = value((first + i) * kLines + lane() / kUnits, lane() % kUnits);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int line = (first + i) * kLines + lane() / kUnits;
        if (line < lines && has_column) to[piece * kUnits] = v[i];
        to += kLines * columns();
      }
    }
  }

  const WgradTensors<T>& p_;
  const Tile& tile_;
  const int index_;
  const uint32_t buffer_;
};

}  // namespace grouped::cuda::sm90
