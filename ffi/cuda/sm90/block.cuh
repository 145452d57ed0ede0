// SPDX-License-Identifier: Apache-2.0
// One persistent block: what its shared memory holds and what each of its warps does.
//
//   warps 0, 1, one lane copy the left and the right operand into a ring of stages, as far ahead as the ring
//   is
//                        deep; one warp for both does not issue copies fast enough
//   warp 2               schedules: which tile comes next, told to all through a short queue
//   warp 3               side work that needs no order (zeros in the tail)
//   warpgroups 1, 2      multiply, and write what they multiplied
//
// A tile is 128 rows, two wgmmas of 64, by a number of columns that it chooses itself: a multiple of 32 up to
// the shape's kMaxWidth. Two blocks form a cluster. Their tiles have the same reduction length; of an operand
// that they share (`Tile::flags`) each fetches half for both. A stage is free again when the multipliers of
// both blocks have read it, so the two stay within one ring of each other.
//
// `Work` says what differs between operations: tiles, operands, ending. See mm.cuh and wgrad.cuh.
#pragma once

#include "common/launch.h"
#include "sm90/ptx.cuh"
#include "sm90/wgmma.cuh"

namespace grouped::cuda::sm90 {

inline constexpr int kTileRows = 128;
inline constexpr int kWidthStep = 32;
// Of the reduction, in one stage: one 128-byte line of 16-bit elements.
inline constexpr int kReduceTile = 64;
inline constexpr int kThreads = 384;
inline constexpr int kMultipliers = 2;  // warpgroups
inline constexpr int kProducerRegisters = 40;
inline constexpr int kMultiplierRegisters = 232;
static_assert(kProducerRegisters + kMultipliers * kMultiplierRegisters <= 65536 / kThreads / 8 * 8 * 3,
              "the three warpgroups share what the block was launched with: more would wait for ever");

// One tile of the result, as the scheduler tells it to the others.
struct Tile {
  int32_t row, column;  // where it begins
  int32_t width;        // columns to multiply: a multiple of kWidthStep
  int32_t group;
  int32_t first_token, num_tokens;  // rows of the inputs: those of the tile, or those reduced over
  int32_t num_blocks;               // of kReduceTile
  int32_t flags;
  // Shared: both blocks of the cluster need the operand. Idle: there is no such tile, but its stages pass.
  static constexpr int32_t kIsEnd = 1, kSharesLeft = 2, kSharesRight = 4, kIsIdle = 8;
  // From this bit on: stages behind the operands, for what the result held. As many for both blocks.
  static constexpr int32_t kOldStages = 16;
  __device__ __forceinline__ int old_stages() const { return flags / kOldStages; }
  __device__ __forceinline__ bool is_end() const { return (flags & kIsEnd) != 0; }
  __device__ __forceinline__ bool shares_left() const { return (flags & kSharesLeft) != 0; }
  __device__ __forceinline__ bool shares_right() const { return (flags & kSharesRight) != 0; }
  __device__ __forceinline__ bool is_idle() const { return (flags & kIsIdle) != 0; }
};
static_assert(sizeof(Tile) == 32, "two 16-byte words");

// To both blocks of the cluster.
inline constexpr uint16_t kToBoth = 3;

inline __device__ Tile end_tile() { return {0, 0, 0, 0, 0, 0, 0, Tile::kIsEnd}; }

// The multipliers take turns, a tile each: while one multiplies, the other writes its result.
struct TakeTurns {
  static constexpr int kMaxWidth = 192;
  static constexpr int kHalves = 2;  // wgmmas of 64 rows, for each multiplier
  static constexpr int kStages = 5;
  // A result leaves in pieces of so many lines of 128 bytes, so many of each multiplier at once.
  static constexpr int kPieceLines = 32;
  static constexpr int kPieces = 3;
};
// They share every tile, 64 rows each. It can be wider, so operands are fetched less often for as many
// products, but no product is made while the results leave.
struct ShareTiles {
  static constexpr int kMaxWidth = 256;
  static constexpr int kHalves = 1;
  static constexpr int kStages = 4;
  static constexpr int kPieceLines = 64;
  static constexpr int kPieces = 2;
};

// Byte offset of 16-byte unit `unit` of line `line` among lines of 128 swizzled bytes.
__device__ __forceinline__ uint32_t line_offset(int line, int unit) {
  return line * kLineBytes + ((unit ^ (line & 7)) << 4);
}

template <typename Shape>
struct Shared {
  static constexpr uint32_t kLeftBytes = kTileRows * kLineBytes;
  static constexpr uint32_t kStageBytes = kLeftBytes + Shape::kMaxWidth * kLineBytes;
  static constexpr int kStages = Shape::kStages;
  static constexpr uint32_t kPieceBytes = Shape::kPieceLines * kLineBytes;
  static constexpr int kTiles = 4;  // in the queue
  static constexpr uint32_t kStaging = kStages * kStageBytes;
  static constexpr uint32_t kTileQueue = kStaging + kMultipliers * Shape::kPieces * kPieceBytes;
  static constexpr uint32_t kBarriers = kTileQueue + kTiles * sizeof(Tile);
  static constexpr uint32_t kBytes = kBarriers + (2 * kStages + 3 * kTiles + kMultipliers) * 8;
  static_assert(kStages >= 4, "fewer stages do not cover the latency of a copy");
  static_assert(kBytes <= 227 * 1024, "a block of a Hopper multiprocessor has 227 KB");

  uint32_t base;
  __device__ __forceinline__ uint32_t left(int stage) const { return base + stage * kStageBytes; }
  __device__ __forceinline__ uint32_t right(int stage) const { return left(stage) + kLeftBytes; }
  __device__ __forceinline__ uint32_t staging(int multiplier) const {
    return base + kStaging + multiplier * Shape::kPieces * kPieceBytes;
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
  // Of a tile in the queue: the first multiplier has cleaned the last stage of the right operand for both.
  __device__ __forceinline__ uint32_t cleaned(int slot) const {
    return filled(2 * kStages + 2 * kTiles + kMultipliers + slot);
  }
};

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

// The scheduler's end and the listeners' end of the tile queue.
template <typename Shape>
class TileQueue {
 public:
  static constexpr uint32_t kListeners = 2 + kMultipliers * 4;  // warps

  __device__ __forceinline__ TileQueue(Shared<Shape> shared, unsigned char* memory)
      : shared_(shared), tiles_(reinterpret_cast<int4*>(memory + Shared<Shape>::kTileQueue)) {}

  // By all lanes of the scheduling warp.
  __device__ __forceinline__ void tell(const Tile& tile) {
    barrier_wait(shared_.heard(cursor_.at), cursor_.parity ^ 1);
    if (threadIdx.x % 32 == 0) {
      tiles_[cursor_.at * 2] = make_int4(tile.row, tile.column, tile.width, tile.group);
      tiles_[cursor_.at * 2 + 1] = make_int4(tile.first_token, tile.num_tokens, tile.num_blocks, tile.flags);
      barrier_arrive(shared_.told(cursor_.at));
    }
    cursor_.advance();
  }

  __device__ __forceinline__ Tile hear() {
    barrier_wait(shared_.told(cursor_.at), cursor_.parity);
    const int4 a = tiles_[cursor_.at * 2];
    const int4 b = tiles_[cursor_.at * 2 + 1];
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  }
  // By one lane of each warp that listens, once it has read the tile it heard.
  __device__ __forceinline__ void forget() const { barrier_arrive(shared_.heard(cursor_.at)); }
  __device__ __forceinline__ void advance() { cursor_.advance(); }
  __device__ __forceinline__ int slot() const { return cursor_.at; }

 private:
  Shared<Shape> shared_;
  int4* tiles_;
  Cursor<Shared<Shape>::kTiles> cursor_;
};

// One operand of all tiles, by one lane. `Loader` is made of the work's parameters and a tile: bytes() of a
// stage, load() fills one. Behind the operands come the stages of what the result held before: load_old()
// fills one and returns its bytes.
template <typename Loader, typename Work>
__device__ __forceinline__ void produce(const Work& work, uint32_t first_stage,
                                        Shared<typename Work::Shape> shared,
                                        TileQueue<typename Work::Shape> queue) {
  Cursor<Work::Shape::kStages> ring;
  for (;;) {
    const Tile tile = queue.hear();
    queue.forget();
    queue.advance();
    if (tile.is_end()) return;
    Loader loader(work.params(), tile);
    const uint32_t bytes = loader.bytes();
    for (int block = 0; block < tile.num_blocks; ++block) {
      barrier_wait(shared.emptied(ring.at), ring.parity ^ 1);
      const uint32_t filled = shared.filled(ring.at);
      barrier_expect(filled, bytes);
      loader.load(first_stage + ring.at * shared.kStageBytes, filled);
      ring.advance();
    }
    for (int i = 0; i < tile.old_stages(); ++i) {
      barrier_wait(shared.emptied(ring.at), ring.parity ^ 1);
      loader.load_old(i, shared.left(ring.at), shared.filled(ring.at));
      ring.advance();
    }
  }
}

// The consuming end of the ring, for one multiplier. Where they take turns: a barrier shows only the parity
// of its phase, so a multiplier must not wait for a stage that the other has yet to use twice. It waits until
// the other has seen all of its own filled.
template <typename Shape>
class RingReader {
 public:
  // Warps that must have read a stage before it is filled again, in each block.
  static constexpr uint32_t kReaders = kMultipliers * 4 / Shape::kHalves;

  __device__ __forceinline__ RingReader(Shared<Shape> shared, int index, uint32_t blocks_in_cluster)
      : shared_(shared), index_(index), turn_(index == 0 ? 1 : 0), blocks_in_cluster_(blocks_in_cluster) {}

  __device__ __forceinline__ void begin_turn() {
    barrier_wait(shared_.may_go(index_), turn_);
    turn_ ^= 1;
  }
  __device__ __forceinline__ void end_turn() const {
    if (threadIdx.x % 128 == 0) barrier_arrive(shared_.may_go(1 - index_));
  }
  static __device__ __forceinline__ int after(int stage) {
    return stage + 1 == Shape::kStages ? 0 : stage + 1;
  }

  // Waits for the next stage; its number.
  __device__ __forceinline__ int next() {
    const int stage = cursor_.at;
    barrier_wait(shared_.filled(stage), cursor_.parity);
    cursor_.advance();
    return stage;
  }
  // Tells all blocks that this warp has read the stage.
  __device__ __forceinline__ void release(int stage) const {
    const uint32_t lane = threadIdx.x % 32;
    if (lane < blocks_in_cluster_) barrier_arrive_at(shared_.emptied(stage), lane);
  }
  // Past stages that are the other multiplier's.
  __device__ __forceinline__ void skip(int stages) { cursor_.skip(stages); }

 private:
  Shared<Shape> shared_;
  int index_;
  uint32_t turn_;
  uint32_t blocks_in_cluster_;
  Cursor<Shape::kStages> cursor_;
};

// Buffers through which one multiplier's result leaves.
template <typename Shape>
class Staging {
  // With three or more, the thread that sends the pieces makes sure that the next one is free before all meet
  // over the one that they wrote. With two that would wait for the copy just begun, so they meet once more.
  static constexpr bool kMeetsOnce = Shape::kPieces > 2;

 public:
  __device__ __forceinline__ Staging(uint32_t shared, int index) : shared_(shared), index_(index) {}

  // Where to write the next piece.
  __device__ __forceinline__ uint32_t next() const {
    if constexpr (!kMeetsOnce) {
      if (threadIdx.x % 128 == 0) store_wait_read<Shape::kPieces - 1>();
      named_barrier<128>(1 + index_);
    }
    return shared_ + slot_ * Shared<Shape>::kPieceBytes;
  }
  // All threads have written it, and the copy engine may read it.
  __device__ __forceinline__ void written() const {
    async_proxy_fence();
    if (kMeetsOnce && threadIdx.x % 128 == 0) store_wait_read<Shape::kPieces - 2>();
    named_barrier<128>(1 + index_);
  }
  // Its copies, if any, are under way.
  __device__ __forceinline__ void sent() {
    if (threadIdx.x % 128 == 0) store_commit();
    slot_ = slot_ == Shape::kPieces - 1 ? 0 : slot_ + 1;
  }

 private:
  uint32_t shared_;
  int index_;
  int slot_ = 0;
};

// acc[half][..] holds 64 rows.
template <typename Shape>
using Accumulators = float[Shape::kHalves][Shape::kMaxWidth / 2];

// Cleans the last stage of a ragged reduction: its lines from `cut` on hold rows of the next group, or of the
// tail. Zeros instead, in both operands, because 0 * NaN is NaN. For operands in panels of 64 lines. Where
// the multipliers share the tile each cleans its own panel of the left operand, the first one the right
// operand too.
template <typename Shape>
class Cleaner {
 public:
  __device__ __forceinline__ Cleaner(Shared<Shape> shared, int index) : shared_(shared), index_(index) {}

  // `slot`: of the tile in the queue.
  __device__ __forceinline__ void zero_past(int cut, const Tile& tile, int stage, int slot) {
    const int right_panels = (tile.width + 63) / 64;
    for (uint32_t at = cut * kLineBytes + threadIdx.x % 128 * 16; at < kPanelBytes; at += 128 * 16) {
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
        if (threadIdx.x % 128 == 0) barrier_arrive(shared_.cleaned(slot));
      } else {
        barrier_wait(shared_.cleaned(slot), parity_ >> slot & 1);
        parity_ ^= 1u << slot;
      }
    }
  }

 private:
  Shared<Shape> shared_;
  int index_;
  uint32_t parity_ = 0;  // one bit a slot
};

// acc = left right over the tile's blocks, by multiplier `index`, for tiles of kWidth columns. `ends_turn`:
// the tile's last stage is an operand's.
template <typename Work, int kWidth>
__device__ __forceinline__ void multiply(const Tile& tile, int index, bool ends_turn,
                                         Shared<typename Work::Shape> shared,
                                         RingReader<typename Work::Shape>& ring, int slot,
                                         Cleaner<typename Work::Shape>& cleaner,
                                         Accumulators<typename Work::Shape>& acc) {
  using Instruction = Wgmma<typename Work::Element, kWidth, Work::kLeft, Work::kRight>;
  constexpr int kHalves = Work::Shape::kHalves;
  constexpr uint32_t kLeftStep = kStepBytes<Work::kLeft> / 16;  // in a descriptor
  constexpr uint32_t kRightStep = kStepBytes<Work::kRight> / 16;
  constexpr uint32_t kHalf = kPanelBytes / 16;
  const auto pin_all = [&acc] {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) pin<kWidth / 2>(acc[half]);
  };
  int last = 0;  // the stage that wgmmas under way may still read
  for (int block = 0; block < tile.num_blocks; ++block) {
    const int stage = ring.next();
    const bool is_last = block == tile.num_blocks - 1;
    if (kHalves == 2 && is_last && ends_turn) ring.end_turn();
    if constexpr (Work::kCutsReduction) {
      const int cut = tile.num_tokens % kReduceTile;
      if (is_last && cut != 0) cleaner.zero_past(cut, tile, stage, slot);
    }
    const uint64_t left = descriptor<Work::kLeft>(shared.left(stage)) + (kHalves == 2 ? 0 : index * kHalf);
    const uint64_t right = descriptor<Work::kRight>(shared.right(stage));
    pin_all();
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kReduceTile / 16; ++step) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        Instruction::run(acc[half], left + half * kHalf + step * kLeftStep, right + step * kRightStep,
                         block + step != 0);
      }
    }
    wgmma_commit();
    pin_all();
    wgmma_wait<1>();
    if (block != 0) ring.release(last);
    last = stage;
  }
  wgmma_wait<0>();
  pin_all();
  if (tile.num_blocks > 0) ring.release(last);
}

template <typename Work, int kWidth = kWidthStep>
__device__ __forceinline__ void multiply_any(const Tile& tile, int index, bool ends_turn,
                                             Shared<typename Work::Shape> shared,
                                             RingReader<typename Work::Shape>& ring, int slot,
                                             Cleaner<typename Work::Shape>& cleaner,
                                             Accumulators<typename Work::Shape>& acc) {
  constexpr int kMaxWidth = Work::Shape::kMaxWidth;
  if (tile.width <= kWidth || kWidth == kMaxWidth) {
    multiply<Work, kWidth>(tile, index, ends_turn, shared, ring, slot, cleaner, acc);
  } else if constexpr (kWidth < kMaxWidth) {
    multiply_any<Work, kWidth + kWidthStep>(tile, index, ends_turn, shared, ring, slot, cleaner, acc);
  }
}

template <typename Work>
__device__ __forceinline__ void run_block(const typename Work::Params& params, unsigned char* memory) {
  using Shape = typename Work::Shape;
  const Shared<Shape> shared = {shared_address(memory)};
  const uint32_t blocks_in_cluster = cluster_size();
  const int warp = threadIdx.x / 32;
  const Work work(params);

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      barrier_init(shared.filled(stage), 2);
      barrier_init(shared.emptied(stage), blocks_in_cluster * RingReader<Shape>::kReaders);
    }
    for (int slot = 0; slot < shared.kTiles; ++slot) {
      barrier_init(shared.told(slot), 1);
      barrier_init(shared.heard(slot), TileQueue<Shape>::kListeners);
      barrier_init(shared.cleaned(slot), 1);
    }
    for (int index = 0; index < kMultipliers; ++index) barrier_init(shared.may_go(index), 1);
    barrier_init_fence();
    work.prefetch();
  }
  __syncwarp();
  cluster_sync();

  TileQueue<Shape> queue(shared, memory);
  if (warp < 4) {
    give_registers<kProducerRegisters>();
    if (warp == 0) {
      if (threadIdx.x == 0) produce<typename Work::LeftLoader>(work, shared.left(0), shared, queue);
      __syncwarp();
    } else if (warp == 1) {
      if (threadIdx.x == 32) produce<typename Work::RightLoader>(work, shared.right(0), shared, queue);
      __syncwarp();
    } else if (warp == 2) {
      work.schedule(queue);
    } else {
      work.side_work(threadIdx.x - 96, 32);
    }
  } else {
    take_registers<kMultiplierRegisters>();
    const int index = warp / 4 - 1;
    RingReader<Shape> ring(shared, index, blocks_in_cluster);
    Staging<Shape> staging(shared.staging(index), index);
    Accumulators<Shape> acc;
    constexpr bool kTakesTurns = Shape::kHalves == 2;
    Cleaner<Shape> cleaner(shared, index);
    for (int turn = 0;; turn ^= 1) {
      const Tile tile = queue.hear();
      __syncwarp();
      if (threadIdx.x % 32 == 0) queue.forget();
      const int slot = queue.slot();
      queue.advance();
      if (tile.is_end()) break;
      const int old_stages = tile.old_stages();
      if (kTakesTurns && turn != index) {
        ring.skip(tile.num_blocks + old_stages);
        continue;
      }
      if (kTakesTurns) ring.begin_turn();
      if (tile.is_idle()) {
        for (int i = 0; i < tile.num_blocks + old_stages; ++i) ring.release(ring.next());
        if (kTakesTurns) ring.end_turn();
        continue;
      }
      multiply_any<Work>(tile, index, old_stages == 0, shared, ring, slot, cleaner, acc);
      int old_stage = 0;
      for (int i = 0; i < old_stages; ++i) {
        const int stage = ring.next();
        if (i == 0) old_stage = stage;
      }
      if (kTakesTurns && (old_stages != 0 || tile.num_blocks == 0)) ring.end_turn();
      __syncwarp();
      work.finish(tile, index, acc, shared, staging, ring, old_stage);
    }
    if (threadIdx.x % 128 == 0) store_wait();
    __syncwarp();
  }
  cluster_sync();  // nothing may still copy into, or arrive at, a block that has gone
}

// One block a multiprocessor, in clusters of two, for `tiles` pieces of work.
template <typename Work>
Status launch_block(void (*kernel)(typename Work::Params), int64_t tiles, const typename Work::Params& params,
                    const Launch& launch) {
  static std::atomic<uint64_t> shared_memory_allowed{0};
  constexpr int kBytes = Shared<typename Work::Shape>::kBytes;
  const Status allowed = allow_shared_memory(kernel, kBytes, launch.device, shared_memory_allowed);
  if (!allowed.ok()) return allowed;
  return launch_clusters(kernel, tiles, 2, dim3(kThreads), kBytes, launch, params);
}

}  // namespace grouped::cuda::sm90
