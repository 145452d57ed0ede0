// SPDX-License-Identifier: Apache-2.0
// From accumulators to a grouped_wgrad's result that is not added to what was there. The accumulators of a warp
// hold 16 whole rows of each half of the tile.
#pragma once

#include "sm90/pack.cuh"
#include "sm90/staging.cuh"
#include "sm90/wgmma.cuh"

namespace grouped::cuda::sm90 {

// `out`: the result [G, rows, columns], in copies of 16 rows by 128 bytes. kWide: fp32 results.
template <typename T, typename Shape, bool kWide>
class WgradOverwriting {
  static constexpr int kColumns = kLineBytes / (kWide ? 4 : 2);  // of a piece
  static constexpr int kBlocks = kColumns / 8;                   // of accumulators
  static constexpr int kColumnPieces = Shape::kMaxWidth / kColumns;

 public:
  __device__ __forceinline__ WgradOverwriting(const CUtensorMap& out, const Tile& tile, int index,
                                              WarpStaging<Shape>& staging)
      : out_(out), tile_(tile), index_(index), staging_(staging) {}

  __device__ __forceinline__ void run(const Accumulators<Shape>& acc) {
#pragma unroll
    for (int half = 0; half < Shape::kHalves; ++half) {
#pragma unroll
      for (int piece = 0; piece < kColumnPieces; ++piece) {
        if (piece * kColumns >= tile_.width) break;
        const uint32_t buffer = staging_.next();
        write(acc[half], piece, buffer);
        send(piece, half, buffer);
      }
    }
  }

  // Zeros, without the accumulators, which an empty group leaves as they were. Loops, because zeroing them in
  // a branch would make them spill.
  __device__ __forceinline__ void run_empty() {
#pragma unroll 1
    for (int half = 0; half < Shape::kHalves; ++half) {
#pragma unroll 1
      for (int piece = 0; piece * kColumns < tile_.width; ++piece) {
        const uint32_t buffer = staging_.next();
        for (uint32_t at = threadIdx.x % 32 * 16; at < WarpStaging<Shape>::kBytes; at += 32 * 16)
          zero_shared_16(buffer + at);
        send(piece, half, buffer);
      }
    }
  }

 private:
  __device__ __forceinline__ void write(const float (&acc)[Shape::kMaxWidth / 2], int piece,
                                        uint32_t buffer) const {
    const int lane = threadIdx.x % 32;
    if constexpr (kWide) {
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          const int at = (piece * kBlocks + j) * 4 + upper * 2;
          store_shared_8(buffer + line_offset(lane / 4 + upper * 8, j * 2 + lane % 4 / 2) + lane % 2 * 8,
                         {acc[at], acc[at + 1]});
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < kBlocks; j += 2) {
        uint32_t m[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = (piece * kBlocks + j) * 4 + i * 2;
          m[i] = packed<T>({acc[at], acc[at + 1]});
        }
        stmatrix_x4(buffer + line_offset(lane % 16, j + lane / 16), m[0], m[1], m[2], m[3]);
      }
    }
  }

  __device__ __forceinline__ void send(int piece, int half, uint32_t buffer) {
    staging_.send([&] {
      const int row = (Shape::kHalves == 2 ? half : index_) * 64 + threadIdx.x % 128 / 32 * 16;
      store_box(out_, buffer, tile_.column + piece * kColumns, tile_.row + row, tile_.group);
    });
  }

  const CUtensorMap& out_;
  const Tile& tile_;
  const int index_;
  WarpStaging<Shape>& staging_;
};

}  // namespace grouped::cuda::sm90
