// SPDX-License-Identifier: Apache-2.0
// One persistent block: what its shared memory holds and what each of its warps does.
//
//   warp 0, one lane     copies operand tiles into a ring of stages, as far ahead as the ring is deep
//   warp 1               schedules: which tile comes next, told to all through a short queue
//   warps 2, 3           side work that needs no order (zeros in the tail)
//   warpgroups 1, 2      multiply: 64 rows of the tile each, and write their rows of the result
//
// Two blocks may form a cluster. Their tiles have the same reduction length; of an operand that they share
// (`Tile::flags`) each fetches half for both. A stage is free again when the multipliers of both blocks have
// read it, so the two stay within one ring of each other.
//
// `Work` says what differs between operations: tiles, operands, ending. See mm.cuh and wgrad.cuh.
#pragma once

#include "sm90/ptx.cuh"
#include "sm90/wgmma.cuh"

namespace grouped::cuda::sm90 {

inline constexpr int kTileRows = 128;
inline constexpr int kReduceTile =
    64;  // of the reduction, in one stage: one 128-byte line of 16-bit elements
inline constexpr int kThreads = 384;
inline constexpr int kMultipliers = 2;  // warpgroups
inline constexpr int kProducerRegisters = 56;
inline constexpr int kMultiplierRegisters = 224;
static_assert(kProducerRegisters + kMultipliers * kMultiplierRegisters <= 65536 / 128,
              "three warpgroups share the registers of a multiprocessor");

// One tile of the result, as the scheduler tells it to the others.
struct Tile {
  int32_t row, num_rows;  // rows that belong to it: may be above kTileRows, and 0 or less for none
  int32_t column;
  int32_t group;
  int32_t first_token, num_tokens;  // the reduction, where it runs over rows of the inputs
  int32_t num_blocks;               // of kReduceTile
  int32_t flags;
  static constexpr int32_t kSharesLeft = 1, kSharesRight = 2, kIsEnd = 4;
  __device__ __forceinline__ bool shares_left() const { return (flags & kSharesLeft) != 0; }
  __device__ __forceinline__ bool shares_right() const { return (flags & kSharesRight) != 0; }
  __device__ __forceinline__ bool is_end() const { return (flags & kIsEnd) != 0; }
};
static_assert(sizeof(Tile) == 32, "two 16-byte words");

// kColumns: columns of a tile.
template <int kColumns>
struct Shared {
  static constexpr uint32_t kLeftBytes = kTileRows * kLineBytes;
  static constexpr uint32_t kStageBytes = kLeftBytes + kColumns * kLineBytes;
  static constexpr int kStages = 4 * (kLeftBytes + 256 * kLineBytes) / kStageBytes;
  static constexpr int kTiles = 4;                                          // in the queue
  static constexpr int kPanels = kStageBytes / kPanelBytes / kMultipliers;  // of a stage, for each multiplier
  static constexpr uint32_t kStagingBytes = 2 * kPanelBytes;                // of one multiplier
  static constexpr uint32_t kStaging = kStages * kStageBytes;
  static constexpr uint32_t kTileQueue = kStaging + kMultipliers * kStagingBytes;
  static constexpr uint32_t kBarriers = kTileQueue + kTiles * sizeof(Tile);
  static constexpr uint32_t kBytes = kBarriers + (2 * kStages + 3 * kTiles) * 8;
  static_assert(kStages >= 4, "fewer stages do not cover the latency of a copy");
  static_assert(kBytes <= 227 * 1024, "a block of a Hopper multiprocessor has 227 KB");

  uint32_t base;
  __device__ __forceinline__ uint32_t left(int stage) const { return base + stage * kStageBytes; }
  __device__ __forceinline__ uint32_t right(int stage) const { return left(stage) + kLeftBytes; }
  __device__ __forceinline__ uint32_t staging(int multiplier) const {
    return base + kStaging + multiplier * kStagingBytes;
  }
  __device__ __forceinline__ uint32_t filled(int stage) const { return base + kBarriers + stage * 8; }
  __device__ __forceinline__ uint32_t emptied(int stage) const { return filled(kStages + stage); }
  // Of a tile in the queue: the scheduler has told it; all are done with it; the first multiplier has cleaned
  // the last stage of the right operand.
  __device__ __forceinline__ uint32_t told(int slot) const { return filled(2 * kStages + slot); }
  __device__ __forceinline__ uint32_t heard(int slot) const { return filled(2 * kStages + kTiles + slot); }
  __device__ __forceinline__ uint32_t cleaned(int slot) const {
    return filled(2 * kStages + 2 * kTiles + slot);
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
};

// The scheduler's end and the listeners' end of the tile queue.
template <int kColumns>
class TileQueue {
  using Memory = Shared<kColumns>;

 public:
  __device__ __forceinline__ TileQueue(Memory shared, unsigned char* memory)
      : shared_(shared), tiles_(reinterpret_cast<int4*>(memory + Memory::kTileQueue)) {}

  // By all lanes of the scheduling warp.
  __device__ __forceinline__ void tell(const Tile& tile) {
    barrier_wait(shared_.heard(cursor_.at), cursor_.parity ^ 1);
    if (threadIdx.x % 32 == 0) {
      tiles_[cursor_.at * 2] = make_int4(tile.row, tile.num_rows, tile.column, tile.group);
      tiles_[cursor_.at * 2 + 1] = make_int4(tile.first_token, tile.num_tokens, tile.num_blocks, tile.flags);
      barrier_arrive(shared_.told(cursor_.at));
    }
    cursor_.advance();
  }

  __device__ __forceinline__ Tile hear() {
    barrier_wait(shared_.told(cursor_.at), cursor_.parity);
    const int4 a = tiles_[cursor_.at * 2];
    const int4 b = tiles_[cursor_.at * 2 + 1];
    cursor_.advance();
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  }
  // By one lane of each warp that listens: its slot may be told anew, and the slot's barriers used again.
  __device__ __forceinline__ void forget() const { barrier_arrive(shared_.heard(slot())); }
  // The slot of the tile heard last.
  __device__ __forceinline__ int slot() const {
    return cursor_.at == 0 ? Memory::kTiles - 1 : cursor_.at - 1;
  }

  static constexpr uint32_t kListeners = 1 + kMultipliers * 4;  // warps

 private:
  Memory shared_;
  int4* tiles_;
  Cursor<Memory::kTiles> cursor_;
};

template <typename Work>
__device__ __forceinline__ void produce(const Work& work, Shared<Work::kColumns> shared,
                                        TileQueue<Work::kColumns> queue) {
  using Memory = Shared<Work::kColumns>;
  Cursor<Memory::kStages> ring;
  for (Tile tile = queue.hear(); !tile.is_end(); tile = queue.hear()) {
    queue.forget();
    for (int block = 0; block < tile.num_blocks; ++block) {
      barrier_wait(shared.emptied(ring.at), ring.parity ^ 1);
      barrier_expect(shared.filled(ring.at), Memory::kStageBytes);
      work.load(tile, block, shared.left(ring.at), shared.right(ring.at), shared.filled(ring.at));
      ring.advance();
    }
    if constexpr (Work::kCutsReduction) {
      if (!work.accumulates()) continue;
      for (int panel = 0; panel < work.panels(); panel += Memory::kPanels) {
        const int count = min(work.panels() - panel, Memory::kPanels);
        barrier_wait(shared.emptied(ring.at), ring.parity ^ 1);
        barrier_expect(shared.filled(ring.at), kMultipliers * count * kPanelBytes);
        work.load_old(tile, panel, count, shared.left(ring.at), shared.filled(ring.at));
        ring.advance();
      }
    }
  }
}

// The consuming end of the ring, for one multiplier.
template <int kColumns>
class RingReader {
  using Memory = Shared<kColumns>;

 public:
  __device__ __forceinline__ RingReader(Memory shared, int index, uint32_t blocks_in_cluster)
      : shared_(shared), index_(index), blocks_in_cluster_(blocks_in_cluster) {}

  // Waits for the next stage; its number.
  __device__ __forceinline__ int next() {
    const int stage = cursor_.at;
    barrier_wait(shared_.filled(stage), cursor_.parity);
    cursor_.advance();
    return stage;
  }
  // Tells both blocks that this warp has read the stage.
  __device__ __forceinline__ void release(int stage) const {
    const uint32_t lane = threadIdx.x % 32;
    if (lane < blocks_in_cluster_) barrier_arrive_at(shared_.emptied(stage), lane);
  }
  // Where this multiplier's panel number `panel` lies in a stage that holds panels of the result.
  __device__ __forceinline__ uint32_t panel(int stage, int panel) const {
    return shared_.left(stage) + (panel * kMultipliers + index_) * kPanelBytes;
  }

 private:
  Memory shared_;
  int index_;
  uint32_t blocks_in_cluster_;
  Cursor<Memory::kStages> cursor_;
};

// acc = left right over the tile's blocks, by one multiplier.
template <typename Work>
class Multiplier {
  using Memory = Shared<Work::kColumns>;
  using Instruction = Wgmma<typename Work::Element, Work::kColumns, Work::kLeft, Work::kRight>;
  static constexpr uint32_t kLeftStep = kStepBytes<Work::kLeft> / 16;  // in a descriptor
  static constexpr uint32_t kRightStep = kStepBytes<Work::kRight> / 16;

 public:
  __device__ __forceinline__ Multiplier(Memory shared, int index) : shared_(shared), index_(index) {}

  // `slot`: of the tile in the queue.
  __device__ __forceinline__ void run(const Tile& tile, int slot, RingReader<Work::kColumns>& ring,
                                      float (&acc)[Work::kColumns / 2]) {
    if (Work::kCutsReduction && tile.num_blocks == 0) return;  // the ending knows
    const int cut = Work::kCutsReduction ? tile.num_tokens % kReduceTile : 0;
    int last = 0;  // the stage that wgmmas under way may still read
    for (int block = 0; block < tile.num_blocks; ++block) {
      const int stage = ring.next();
      if (Work::kCutsReduction && cut != 0 && block == tile.num_blocks - 1) zero_past(cut, stage, slot);
      const uint64_t left = descriptor<Work::kLeft>(shared_.left(stage) + index_ * kPanelBytes);
      const uint64_t right = descriptor<Work::kRight>(shared_.right(stage));
      pin(acc);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < kReduceTile / 16; ++step)
        Instruction::run(acc, left + step * kLeftStep, right + step * kRightStep, block + step != 0);
      wgmma_commit();
      pin(acc);
      wgmma_wait<1>();
      if (block != 0) ring.release(last);
      last = stage;
    }
    wgmma_wait<0>();
    pin(acc);
    ring.release(last);
  }

 private:
  // The stage's lines from `cut` on hold rows of the next group, or of the tail: zeros instead, in both
  // operands, because 0 * NaN is NaN. Each multiplier cleans its panel of the left operand, the first one the
  // right operand too.
  __device__ __forceinline__ void zero_past(int cut, int stage, int slot) {
    const uint32_t left = shared_.left(stage) + index_ * kPanelBytes;
    for (uint32_t at = cut * kLineBytes + threadIdx.x % 128 * 16; at < kPanelBytes; at += 128 * 16) {
      zero_shared_16(left + at);
      if (index_ != 0) continue;
#pragma unroll
      for (int panel = 0; panel < Work::kColumns / 64; ++panel)
        zero_shared_16(shared_.right(stage) + panel * kPanelBytes + at);
    }
    async_proxy_fence();
    named_barrier<128>(1 + index_);
    if (index_ == 0) {
      if (threadIdx.x % 128 == 0) barrier_arrive(shared_.cleaned(slot));
    } else {
      barrier_wait(shared_.cleaned(slot), cleaned_parity_ >> slot & 1);
      cleaned_parity_ ^= 1u << slot;
    }
  }

  Memory shared_;
  int index_;
  uint32_t cleaned_parity_ = 0;  // one bit a slot
};

template <typename Work>
__device__ __forceinline__ void run_block(const typename Work::Params& params, unsigned char* memory) {
  using Memory = Shared<Work::kColumns>;
  const Memory shared = {shared_address(memory)};
  const uint32_t blocks_in_cluster = cluster_size();
  const int warp = threadIdx.x / 32;
  const Work work(params);

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Memory::kStages; ++stage) {
      barrier_init(shared.filled(stage), 1);
      barrier_init(shared.emptied(stage), blocks_in_cluster * kMultipliers * 4);
    }
    for (int slot = 0; slot < Memory::kTiles; ++slot) {
      barrier_init(shared.told(slot), 1);
      barrier_init(shared.heard(slot), TileQueue<Work::kColumns>::kListeners);
      barrier_init(shared.cleaned(slot), 1);
    }
    barrier_init_fence();
    work.prefetch();
  }
  __syncwarp();
  cluster_sync();

  TileQueue<Work::kColumns> queue(shared, memory);
  if (warp < 4) {
    give_registers<kProducerRegisters>();
    if (warp == 0) {
      if (threadIdx.x == 0) produce(work, shared, queue);
      __syncwarp();
    } else if (warp == 1) {
      work.schedule(queue);
    } else {
      work.side_work(threadIdx.x - 64, 64);
    }
  } else {
    take_registers<kMultiplierRegisters>();
    const int index = warp / 4 - 1;
    RingReader<Work::kColumns> ring(shared, index, blocks_in_cluster);
    Multiplier<Work> multiplier(shared, index);
    float acc[Work::kColumns / 2];
    for (Tile tile = queue.hear(); !tile.is_end(); tile = queue.hear()) {
      multiplier.run(tile, queue.slot(), ring, acc);
      __syncwarp();
      if (threadIdx.x % 32 == 0) queue.forget();
      work.finish(tile, index, acc, shared.staging(index), ring);
    }
    if (threadIdx.x % 128 == 0) store_wait();
    __syncwarp();
  }
  cluster_sync();  // nothing may still copy into, or arrive at, a block that has gone
}

}  // namespace grouped::cuda::sm90
