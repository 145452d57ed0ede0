// SPDX-License-Identifier: Apache-2.0
// What the Hopper kernels' blocks are made of: shapes of tiles, one tile as the scheduler tells it, shared
// memory.
#pragma once

#include "sm90/ptx.cuh"
#include "sm90/wgmma.cuh"

namespace grouped::cuda::sm90 {

inline constexpr int kTileRows = 128;
inline constexpr int kWidthStep = 32;
// Of the reduction, in one stage: one 128-byte line of 16-bit elements.
inline constexpr int kReduceTile = 64;
inline constexpr int kThreads = 384;
inline constexpr int kMultipliers = 2;  // warpgroups
inline constexpr int kClusterBlocks = 4;

// One tile of the result, as the scheduler tells it to the others.
struct Tile {
  // Where it begins. Of mm: the first feature, and 0; of wgrad: row and column of the result.
  int32_t row, column;
  int32_t width;  // columns to multiply: a multiple of kWidthStep
  int32_t group;
  int32_t first_token, num_tokens;  // rows of the inputs: those of the tile, or those reduced over
  int32_t num_blocks;               // of kReduceTile
  int32_t flags;
  // Shared: both blocks of the cluster need the operand. Idle: there is no such tile, but its stages pass.
  static constexpr int32_t kIsEnd = 1, kSharesLeft = 2, kSharesRight = 4, kIsIdle = 8;
  // From this bit on: stages behind the operands, for what the result held, where it comes through the ring.
  // As many for both blocks.
  static constexpr int32_t kOldStages = 16;
  __device__ __forceinline__ int old_stages() const { return flags / kOldStages; }
  __device__ __forceinline__ bool is_end() const { return (flags & kIsEnd) != 0; }
  __device__ __forceinline__ bool shares_left() const { return (flags & kSharesLeft) != 0; }
  __device__ __forceinline__ bool shares_right() const { return (flags & kSharesRight) != 0; }
  __device__ __forceinline__ bool is_idle() const { return (flags & kIsIdle) != 0; }
};
static_assert(sizeof(Tile) == 32, "two 16-byte words");

inline __device__ Tile end_tile() { return {0, 0, 0, 0, 0, 0, 0, Tile::kIsEnd}; }

// Registers of a thread: those that multiply need them for accumulators, which are fewer where tiles are
// shared, and the scheduling warp has the rest. The three warpgroups share what the block was launched with;
// who asks for more waits for ever.
template <typename Shape>
inline constexpr int kMultiplierRegisters = Shape::kHalves == 2 ? 232 : 224;
template <typename Shape>
inline constexpr int kProducerRegisters =
    65536 / kThreads / 8 * 8 * 3 - kMultipliers * kMultiplierRegisters<Shape>;

// The multipliers take turns, a tile each: while one multiplies, the other writes its result.
struct TakeTurns {
  static constexpr int kMaxWidth = 192;
  static constexpr int kHalves = 2;  // wgmmas of 64 rows, for each multiplier
  static constexpr int kStages = 5;
  // A result leaves in pieces of so many lines of 128 bytes, which hold so many of the tile's halves; through
  // so many buffers.
  static constexpr int kPieceLines = 64;
  static constexpr int kPieceHalves = 2;
  static constexpr int kPieces = 3;
  // Whose turn it is to write has all buffers; else each multiplier has its own.
  static constexpr bool kSharesBuffers = true;
  static constexpr bool kOldThroughRing = false;
  // A piece has all of the tile's columns; else, as many as fit into one line of shared memory.
  static constexpr bool kSendsLines = false;
};
// The same where results are added to what was there. That arrives in the buffers of the pieces, well before,
// because in the ring it would keep the other multiplier from its operands; so each has its own buffers.
struct TakeTurnsAdding : TakeTurns {
  static constexpr int kPieceLines = 32;
  static constexpr int kPieceHalves = 1;
  static constexpr bool kSharesBuffers = false;
};
// The same for results that take longer to write than to multiply: more of one fits into the buffers, here
// all of it, for which the ring has a stage less.
struct TakeTurnsLargeBuffers : TakeTurns {
  static constexpr int kStages = 4;
  static constexpr int kPieceLines = 128;
  static constexpr int kPieces = 4;
};
struct TakeTurnsAddingLargeBuffers : TakeTurnsAdding {
  static constexpr int kStages = 4;
  static constexpr int kPieceLines = 64;
  static constexpr int kPieces = 4;
};
// They share every tile, 64 rows each. It can be wider, so operands are fetched less often for as many
// products, but no product is made while the results leave.
struct ShareTiles {
  static constexpr int kMaxWidth = 256;
  static constexpr int kHalves = 1;
  static constexpr int kStages = 4;
  static constexpr int kPieceLines = 64;
  static constexpr int kPieceHalves = 1;
  static constexpr int kPieces = 2;
  static constexpr bool kSharesBuffers = false;
  // It arrives in the ring, which has room for more of it on its way than two buffers.
  static constexpr bool kOldThroughRing = true;
  static constexpr bool kSendsLines = false;
};
// The same for weight gradients of so few rows that writing them is nearly all. Memory takes results faster
// where 256 bytes or more, aligned, come at once, so a piece has 16 rows of 512 bytes; one warp writes and
// sends it alone. There is room for a whole result, for a stage less.
struct ShareTilesSendLines : ShareTiles {
  static constexpr int kStages = 3;
  static constexpr int kPieceLines = 64;
  static constexpr int kPieces = 4;  // one for each warp
  static constexpr bool kSendsLines = true;
};

// Byte offset of 16-byte unit `unit` of line `line` among lines of 128 swizzled bytes.
__device__ __forceinline__ uint32_t line_offset(int line, int unit) {
  return line * kLineBytes + ((unit ^ (line & 7)) << 4);
}

// A place in a ring of kCount, and the parity of its barriers there.
template <int kCount>
struct Cursor {
  int at = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++at == kCount) {
      at = 0;
      parity ^= 1;
    }
  }
  __device__ __forceinline__ void skip(int places) {
    const int to = at + places;
    parity ^= static_cast<uint32_t>(to / kCount) & 1;
    at = to % kCount;
  }
};

template <typename Shape>
struct Shared {
  static constexpr uint32_t kLeftBytes = kTileRows * kLineBytes;
  static constexpr uint32_t kStageBytes = kLeftBytes + Shape::kMaxWidth * kLineBytes;
  static constexpr int kStages = Shape::kStages;
  static constexpr uint32_t kPieceBytes = Shape::kPieceLines * kLineBytes;
  static constexpr int kTiles = 3;  // in the queue
  static constexpr int kStagings = Shape::kSharesBuffers ? 1 : kMultipliers;
  static constexpr uint32_t kStaging = kStages * kStageBytes;
  static constexpr uint32_t kTileQueue = kStaging + kStagings * Shape::kPieces * kPieceBytes;
  static constexpr uint32_t kBarriers = kTileQueue + kTiles * sizeof(Tile);
  static constexpr int kFeedSlots = 1;  // for pieces on their way to both blocks' schedulers
  static constexpr uint32_t kPieceFeed = kBarriers + (3 * kStages + 2 * kTiles + 2 * kMultipliers) * 8;
  // Buffers that are filled with what the result held: each multiplier's own, where that is not in the ring.
  static constexpr int kFetches = Shape::kSharesBuffers || Shape::kOldThroughRing ? 0 : Shape::kPieces;
  static constexpr uint32_t kFetched = kPieceFeed + 3 * kFeedSlots * 8;
  static constexpr uint32_t kBytes = kFetched + kMultipliers * kFetches * 8;
  static_assert(kStages >= 3, "fewer stages do not cover the latency of a copy");
  static_assert(kBytes <= 227 * 1024, "a block of a Hopper multiprocessor has 227 KB");

  uint32_t base;
  // Of a piece: its number, the first block has told it, both have read it (in the first block).
  __device__ __forceinline__ uint32_t piece(int slot) const { return base + kPieceFeed + slot * 8; }
  __device__ __forceinline__ uint32_t fed(int slot) const { return piece(kFeedSlots + slot); }
  __device__ __forceinline__ uint32_t forgotten(int slot) const { return piece(2 * kFeedSlots + slot); }
  __device__ __forceinline__ uint32_t left(int stage) const { return base + stage * kStageBytes; }
  __device__ __forceinline__ uint32_t right(int stage) const { return left(stage) + kLeftBytes; }
  __device__ __forceinline__ uint32_t staging(int multiplier) const {
    return base + kStaging + multiplier % kStagings * Shape::kPieces * kPieceBytes;
  }
  // The multiplier's buffer holds what the result held.
  __device__ __forceinline__ uint32_t fetched(int multiplier, int piece) const {
    return base + kFetched + (multiplier * kFetches + piece) * 8;
  }
  __device__ __forceinline__ uint32_t filled(int stage) const { return base + kBarriers + stage * 8; }
  __device__ __forceinline__ uint32_t emptied(int stage) const { return filled(kStages + stage); }
  // Of a tile in the queue: the scheduler has told it; all have heard it.
  __device__ __forceinline__ uint32_t told(int slot) const { return filled(2 * kStages + slot); }
  __device__ __forceinline__ uint32_t heard(int slot) const { return filled(2 * kStages + kTiles + slot); }
  // The multiplier may wait for its stages.
  __device__ __forceinline__ uint32_t may_go(int multiplier) const {
    return filled(2 * kStages + 2 * kTiles + multiplier);
  }
  // The multiplier may write into the buffers that both share.
  __device__ __forceinline__ uint32_t may_write(int multiplier) const {
    return may_go(kMultipliers + multiplier);
  }
  // The first multiplier has cleaned the stage's right operand for both. Of a stage, not of a tile: a stage
  // is not used again before all have seen it.
  __device__ __forceinline__ uint32_t cleaned(int stage) const {
    return filled(2 * kStages + 2 * kTiles + 2 * kMultipliers + stage);
  }
};

// acc[half][..] holds 64 rows.
template <typename Shape>
using Accumulators = float[Shape::kHalves][Shape::kMaxWidth / 2];

}  // namespace grouped::cuda::sm90
