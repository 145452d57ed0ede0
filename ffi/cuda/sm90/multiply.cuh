// SPDX-License-Identifier: Apache-2.0
// The products of one tile, by one warpgroup.
#pragma once

#include "sm90/ring.cuh"

namespace grouped::cuda::sm90 {

inline constexpr int kStepRows = 16;  // of the reduction, in one wgmma
inline constexpr int kSteps = kReduceTile / kStepRows;

// Cleans the last step of a ragged reduction: its lines `cut` up to `end` of the stage hold rows of the next
// group, or of the tail. Zeros instead, in both operands, because 0 * NaN is NaN. For operands in panels of
// 64 lines. Where the multipliers share the tile each cleans its own panel of the left operand, the first one
// the right operand too.
template <typename Shape>
class Cleaner {
 public:
  __device__ __forceinline__ Cleaner(Shared<Shape> shared, int index) : shared_(shared), index_(index) {}

  __device__ __forceinline__ void zero(int cut, int end, const Tile& tile, int stage) {
    const int right_panels = (tile.width + 63) / 64;
    const uint32_t end_at = end * kLineBytes;
    for (uint32_t at = cut * kLineBytes + threadIdx.x % 128 * 16; at < end_at; at += 128 * 16) {
      if constexpr (Shape::kHalves == 2) {
        zero_shared_16(shared_.left(stage) + at);
        zero_shared_16(shared_.left(stage) + kPanelBytes + at);
      } else {
        zero_shared_16(shared_.left(stage) + index_ * kPanelBytes + at);
        if (index_ != 0) continue;
      }
      for (int panel = 0; panel < right_panels; ++panel)
        zero_shared_16(shared_.right(stage) + panel * kPanelBytes + at);
    }
    async_proxy_fence();
    named_barrier<128>(1 + index_);
    if constexpr (Shape::kHalves == 1) {
      if (index_ == 0) {
        if (threadIdx.x % 128 == 0) barrier_arrive(shared_.cleaned(stage));
      } else {
        barrier_wait(shared_.cleaned(stage), parity_ >> stage & 1);
        parity_ ^= 1u << stage;
      }
    }
  }

 private:
  Shared<Shape> shared_;
  int index_;
  uint32_t parity_ = 0;  // one bit a stage
};

// acc = left right over the tile's blocks, by multiplier `index`, for tiles of kWidth columns; meanwhile()
// while the last products are under way.
template <typename Work, int kWidth, typename Meanwhile>
__device__ __forceinline__ void multiply(const Tile& tile, int index, Shared<typename Work::Shape> shared,
                                         RingReader<typename Work::Shape>& ring,
                                         Cleaner<typename Work::Shape>& cleaner,
                                         Accumulators<typename Work::Shape>& acc,
                                         const Meanwhile& meanwhile) {
  using Instruction = Wgmma<typename Work::Element, kWidth, Work::kLeft, Work::kRight>;
  constexpr int kHalves = Work::Shape::kHalves;
  constexpr uint32_t kLeftStep = kStepBytes<Work::kLeft> / 16;  // in a descriptor
  constexpr uint32_t kRightStep = kStepBytes<Work::kRight> / 16;
  constexpr uint32_t kHalf = kPanelBytes / 16;
  const auto pin_all = [&acc] {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) pin<kWidth / 2>(acc[half]);
  };
  // Behind the first wgmmas of a block those of the block before are done: its stage is free then, and not
  // only at the end of this block, since a warp waits with issuing a wgmma until the one before is nearly
  // done. The first wgmmas must last for the release and for a look at the next stage.
  constexpr int kFirstSteps = kWidth * kHalves >= 256 ? 1 : 2;
  const auto operands = [&](int stage, uint64_t* left, uint64_t* right) {
    *left = descriptor<Work::kLeft>(shared.left(stage)) + (kHalves == 2 ? 0 : index * kHalf);
    *right = descriptor<Work::kRight>(shared.right(stage));
  };
  // Rows in the last block, if it is not a whole one. Their steps have a loop of their own: a branch around
  // wgmmas makes the compiler wait for each.
  const int cut = Work::kCutsReduction ? tile.num_tokens % kReduceTile : 0;
  const int whole_blocks = tile.num_blocks - (cut != 0 ? 1 : 0);
  uint64_t left, right;
  int last = 0;            // the stage of the block before
  bool is_filled = false;  // the next stage, as far as is known
  for (int block = 0; block < whole_blocks; ++block) {
    const int stage = ring.next(is_filled);
    if (kHalves == 2 && block == tile.num_blocks - 1) ring.end_turn();
    operands(stage, &left, &right);
    pin_all();
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        Instruction::run(acc[half], left + half * kHalf + step * kLeftStep, right + step * kRightStep,
                         block + step != 0);
      }
      if (step + 1 == kFirstSteps) {
        wgmma_commit();
        wgmma_wait<1>();
        if (block != 0) ring.release(last);
        is_filled = ring.peek();
      }
    }
    wgmma_commit();
    pin_all();
    last = stage;
  }
  if constexpr (Work::kCutsReduction) {
    if (cut != 0) {
      const int stage = ring.next(is_filled);
      if (kHalves == 2) ring.end_turn();
      const int steps = (cut + kStepRows - 1) / kStepRows;
      if (cut % kStepRows != 0) cleaner.zero(cut, steps * kStepRows, tile, stage);
      operands(stage, &left, &right);
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        pin_all();
        wgmma_fence();
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
          Instruction::run(acc[half], left + half * kHalf, right, whole_blocks + step != 0);
        wgmma_commit();
        pin_all();
        wgmma_wait<1>();
        if (step == 0 && whole_blocks != 0) ring.release(last);
        left += kLeftStep;
        right += kRightStep;
      }
      last = stage;
    }
  }
  meanwhile();
  wgmma_wait<0>();
  pin_all();
  if (tile.num_blocks > 0) ring.release(last);
}

// In the narrowest width that has all the columns that count.
template <typename Work, int kWidth = Work::kMultiplyStep, typename Meanwhile>
__device__ __forceinline__ void multiply_any(const Tile& tile, int index, Shared<typename Work::Shape> shared,
                                             RingReader<typename Work::Shape>& ring,
                                             Cleaner<typename Work::Shape>& cleaner,
                                             Accumulators<typename Work::Shape>& acc,
                                             const Meanwhile& meanwhile) {
  constexpr int kMaxWidth = Work::Shape::kMaxWidth;
  if (Work::columns_to_multiply(tile) <= kWidth || kWidth == kMaxWidth) {
    multiply<Work, kWidth>(tile, index, shared, ring, cleaner, acc, meanwhile);
  } else if constexpr (kWidth < kMaxWidth) {
    multiply_any<Work, kWidth + Work::kMultiplyStep>(tile, index, shared, ring, cleaner, acc, meanwhile);
  }
}

}  // namespace grouped::cuda::sm90
