// SPDX-License-Identifier: Apache-2.0
// From accumulators to a grouped_wgrad's result where the multipliers share a tile and each warp writes and
// sends its own 16 rows of it, in whole lines (Shape::kSendsLines).
#pragma once

#include "sm90/wgrad_ending.cuh"

namespace grouped::cuda::sm90 {

// A piece: 16 rows, of each so many panels of 128 bytes. In shared memory one panel lies behind the other.
inline constexpr int kLineRows = 16;
template <typename Shape>
inline constexpr int kLinePanels = Shape::kPieceLines / kLineRows;

template <typename T, typename Shape, bool kWide>
class WgradLinesEnding {
  static constexpr int kPanelColumns = kWide ? 32 : 64;
  static constexpr int kColumns = kLinePanels<Shape> * kPanelColumns;  // of a piece
  static constexpr int kBlocks = kColumns / 8;                         // of accumulators
  static constexpr int kColumnPieces = Shape::kMaxWidth / kColumns;
  static_assert(Shape::kHalves == 1 && Shape::kPieces == 4, "16 rows and one buffer for each warp");
  static_assert(Shape::kMaxWidth % kColumns == 0, "a piece must not reach into the next tile");

 public:
  __device__ __forceinline__ WgradLinesEnding(const WgradTensors<T>& p, const Tile& tile, int index,
                                              Shared<Shape> shared)
      : p_(p),
        tile_(tile),
        first_row_(tile.row + index * 64 + threadIdx.x % 128 / 32 * kLineRows),
        buffer_(shared.staging(index) + threadIdx.x % 128 / 32 * Shared<Shape>::kPieceBytes) {}

  __device__ __forceinline__ void run(const Accumulators<Shape>& acc) const {
#pragma unroll
    for (int piece = 0; piece < kColumnPieces; ++piece) {
      if (piece * kColumns >= tile_.width) break;
      wait_for_buffer();
      write(acc[0], piece);
      send(piece);
    }
  }

  // Zeros, without the accumulators, which an empty group leaves as they were.
  __device__ __forceinline__ void run_empty() const {
    wait_for_buffer();
    for (uint32_t at = lane() * 16; at < Shared<Shape>::kPieceBytes; at += 32 * 16)
      zero_shared_16(buffer_ + at);
    for (int piece = 0; piece * kColumns < tile_.width; ++piece) send(piece);
  }

 private:
  __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }

  // Until the copy engine has read what the warp sent before.
  __device__ __forceinline__ void wait_for_buffer() const {
    if (lane() == 0) store_wait_read<0>();
    __syncwarp();
  }

  // Unit `unit` of 16 bytes of a row.
  __device__ __forceinline__ uint32_t at(int row, int unit) const {
    return buffer_ + unit / 8 * (kLineRows * kLineBytes) + line_offset(row, unit % 8);
  }

  // This thread has two neighbouring columns of each block of 8, in rows lane() / 4 and 8 below.
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

  __device__ __forceinline__ void send(int piece) const {
    async_proxy_fence();
    __syncwarp();
    if (lane() != 0 || p_.wgrad.rows > 0) return;
    store_box(p_.out, buffer_, 0, first_row_, tile_.column / kPanelColumns + piece * kLinePanels<Shape>,
              tile_.group);
    store_commit();
  }

  const WgradTensors<T>& p_;
  const Tile& tile_;
  const int first_row_;
  const uint32_t buffer_;
};

}  // namespace grouped::cuda::sm90
