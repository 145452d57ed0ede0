// SPDX-License-Identifier: Apache-2.0
// acc[128,128] = A[128,R] B[R,128] on tensor cores: the loop that grouped_mm and grouped_wgrad share.
//
// A [M,R] and B [R,N] are windows of row-major 16-bit arrays; R is the reduction: K in mm, a group's rows in
// wgrad.
//   Major::kReduction: the array is [outer, R].   Major::kOuter: the array is [R, outer].
//
// Every variant takes R in the same steps of 16 from 0 and pads the last with zeros, and an element of acc
// sees only its own row of A and column of B. So its bits depend on neither storage, alignment, nor place in
// the tile.
//
// Shared memory, kStages times:
//   A  8 KB  kReduction: [128 outer][32 R], kOuter: [32 R][128 outer]
//   B  8 KB  likewise
// in chunks of 16 bytes, their index within a line XORed with bits of the line: the 8 chunks that one
// ldmatrix phase reads, and the 8 that neighbouring threads write, then lie in different banks.
#pragma once

#include "common/ptx.cuh"
#include "portable/major.h"

namespace grouped::cuda {

inline constexpr int kTile = 128;       // rows of A and columns of B in a tile
inline constexpr int kReduceTile = 32;  // of R, in one stage
inline constexpr int kStages = 4;
inline constexpr int kMmaThreads = 128;  // 2 x 2 warps of 64 x 64
inline constexpr int kMmaBlocksPerSm = 2;
inline constexpr int kWarpTile = 64;
inline constexpr int kChunk = 8;  // elements in 16 bytes
inline constexpr uint32_t kOperandBytes = kTile * kReduceTile * 2;
inline constexpr uint32_t kStageBytes = 2 * kOperandBytes;
inline constexpr int kMmaSharedBytes = kStages * kStageBytes;

static_assert(kMmaSharedBytes <= 99 * 1024, "a block must fit in the 99 KB that sm_86 gives to one block");
static_assert(kMmaThreads == (kTile / kWarpTile) * (kTile / kWarpTile) * 32, "warps tile the output exactly");

using MmaAccumulator = float[kWarpTile / 16][kWarpTile / 8][4];

template <Major kMajor>
struct OperandLayout {
  static constexpr int kChunksPerLine = (kMajor == Major::kReduction ? kReduceTile : kTile) / kChunk;
  static constexpr uint32_t kLineBytes = kChunksPerLine * 16;

  // 64-byte lines put two in each 128 bytes of banks, so the XOR takes bits 1-2 of the line; 256-byte lines
  // bits 0-2.
  __device__ __forceinline__ static uint32_t offset(int line, int chunk) {
    const int swizzled = kMajor == Major::kReduction ? chunk ^ ((line >> 1) & 3) : chunk ^ (line & 7);
    return line * kLineBytes + swizzled * 16;
  }
};

// Brings one operand from global to shared memory, 32 of R at each call. Nothing outside the window is read;
// zeros are written in its place.
template <Major kMajor, bool kAligned>
class OperandLoader {
  using Layout = OperandLayout<kMajor>;
  static constexpr int kLineStep = kMmaThreads / Layout::kChunksPerLine;
  static constexpr int kLines = (kMajor == Major::kReduction ? kTile : kReduceTile) / kLineStep;
  static constexpr uint32_t kStepBytes = kLineStep * Layout::kLineBytes;
  static_assert(kLineStep % 8 == 0, "the swizzle must not change between the lines of one thread");

 public:
  // `origin` is element (0, 0) of the window, `pitch` its row length in the array.
  __device__ __forceinline__ OperandLoader(const void* origin, int64_t pitch, int64_t outer,
                                           int64_t reduction)
      : origin_(static_cast<const uint16_t*>(origin)),
        pitch_(pitch),
        remaining_(reduction),
        outer_(outer < kTile ? static_cast<int>(outer) : kTile),
        line_(threadIdx.x / Layout::kChunksPerLine),
        first_(threadIdx.x % Layout::kChunksPerLine * kChunk) {
    next_ = origin_ + line_ * pitch + first_;
    offset_ = Layout::offset(line_, first_ / kChunk);
  }

  // The next 32 of R, to the operand's place at `shared`. There must be some left.
  __device__ __forceinline__ void load(uint32_t shared) {
    const int reduction = remaining_ < kReduceTile ? static_cast<int>(remaining_) : kReduceTile;
    const int lines = (kMajor == Major::kReduction ? outer_ : reduction) - line_;
    const int elements = (kMajor == Major::kReduction ? reduction : outer_) - first_;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const bool line_exists = i * kLineStep < lines;
      const uint16_t* source = next_ + i * kLineStep * pitch_;
      const uint32_t target = shared + offset_ + i * kStepBytes;
      if constexpr (kAligned) {
        // Row lengths are multiples of a chunk here, so a chunk is wholly inside or wholly outside.
        const bool inside = line_exists && elements > 0;
        cp_async_16(target, inside ? source : origin_, inside);
      } else {
        uint32_t words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const uint32_t low = line_exists && 2 * w < elements ? source[2 * w] : 0;
          const uint32_t high = line_exists && 2 * w + 1 < elements ? source[2 * w + 1] : 0;
          words[w] = low | high << 16;
        }
        store_shared_16(target, words);
      }
    }
    next_ += kMajor == Major::kReduction ? kReduceTile : kReduceTile * pitch_;
    remaining_ -= kReduceTile;
  }

 private:
  const uint16_t* origin_;
  const uint16_t* next_;
  int64_t pitch_;
  int64_t remaining_;
  int outer_;
  int line_, first_;  // where in the tile this thread's first chunk lies
  uint32_t offset_;   // and where in shared memory
};

// Reads 16 x 16 fragments of one operand: matrices (outer half, R half) in the order in which mma wants them.
template <Major kMajor>
class FragmentReader {
  using Layout = OperandLayout<kMajor>;

 public:
  // Lane l names row l % 8 of the matrix in outer half `outer_half` and R half `reduction_half`.
  __device__ __forceinline__ FragmentReader(int outer_start, int outer_half, int reduction_half) {
    const int row = threadIdx.x % 8;
    if constexpr (kMajor == Major::kReduction) {
      offset_ = Layout::offset(outer_start + outer_half * 8 + row, reduction_half);
    } else {
      offset_ = Layout::offset(reduction_half * 8 + row, outer_start / kChunk + outer_half);
    }
  }

  // Fragment `outer` (16 rows each) of R step `step`. A step along a line flips chunk bits that `offset`
  // leaves clear before its XOR, hence ^ and not +.
  __device__ __forceinline__ void read(uint32_t (&out)[4], uint32_t shared, int outer, int step) const {
    if constexpr (kMajor == Major::kReduction) {
      ldmatrix_x4<false>(out, shared + (offset_ ^ (step * 32)) + outer * 16 * Layout::kLineBytes);
    } else {
      ldmatrix_x4<true>(out, shared + (offset_ ^ (outer * 32)) + step * 16 * Layout::kLineBytes);
    }
  }

 private:
  uint32_t offset_;
};

// `shared` is the block's kMmaSharedBytes. On return other warps may still read it.
template <typename T, Major kA, Major kB, bool kAligned>
__device__ __forceinline__ void multiply_tile(uint32_t shared, OperandLoader<kA, kAligned> a,
                                              OperandLoader<kB, kAligned> b, int64_t reduction,
                                              MmaAccumulator& acc) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const FragmentReader<kA> a_reader(warp % 2 * kWarpTile, lane / 8 % 2, lane / 16);
  const FragmentReader<kB> b_reader(warp / 2 * kWarpTile, lane / 16, lane / 8 % 2);

#pragma unroll
  for (auto& block_row : acc) {
    for (auto& block : block_row) {
      for (float& v : block) v = 0.0f;
    }
  }

  const int64_t num_stages = (reduction + kReduceTile - 1) / kReduceTile;
  // One commit for each stage, loaded or not, so that "all but the newest kStages - 2 groups" always means
  // that the stage about to be read has landed.
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < num_stages) {
      a.load(shared + s * kStageBytes);
      b.load(shared + s * kStageBytes + kOperandBytes);
    }
    cp_async_commit();
  }

  uint32_t read_at = shared;
  uint32_t write_at = shared + (kStages - 1) * kStageBytes;
  const uint32_t past_end = shared + kStages * kStageBytes;
  for (int64_t stage = 0; stage < num_stages; ++stage) {
    cp_async_wait<kStages - 2>();
    // Makes every thread's part of this stage visible to all, and proves that nobody still reads the stage
    // before it, whose place the next load takes.
    __syncthreads();
    if (stage + kStages - 1 < num_stages) {
      a.load(write_at);
      b.load(write_at + kOperandBytes);
    }
    cp_async_commit();

#pragma unroll
    for (int step = 0; step < kReduceTile / 16; ++step) {
      uint32_t a_fragments[kWarpTile / 16][4];
      uint32_t b_fragments[kWarpTile / 16][4];
#pragma unroll
      for (int i = 0; i < kWarpTile / 16; ++i) {
        a_reader.read(a_fragments[i], read_at, i, step);
        b_reader.read(b_fragments[i], read_at + kOperandBytes, i, step);
      }
#pragma unroll
      for (int i = 0; i < kWarpTile / 16; ++i) {
#pragma unroll
        for (int j = 0; j < kWarpTile / 8; ++j) {
          mma_16x8x16<T>(acc[i][j], a_fragments[i], b_fragments[j / 2][j % 2 * 2],
                         b_fragments[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
    read_at = read_at + kStageBytes == past_end ? shared : read_at + kStageBytes;
    write_at = write_at + kStageBytes == past_end ? shared : write_at + kStageBytes;
  }
}

// Where acc[i][j][half * 2] lies in the tile; acc[i][j][half * 2 + 1] is its right neighbour.
struct MmaPlace {
  int first_row, first_column;

  __device__ __forceinline__ MmaPlace() {
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    first_row = warp % 2 * kWarpTile + lane / 4;
    first_column = warp / 2 * kWarpTile + lane % 4 * 2;
  }
  __device__ __forceinline__ int row(int i, int half) const { return first_row + i * 16 + half * 8; }
  __device__ __forceinline__ int column(int j) const { return first_column + j * 8; }
};

}  // namespace grouped::cuda
