// SPDX-License-Identifier: Apache-2.0
// One persistent block: what its shared memory holds and what each of its warps does.
//
//   warp 0, one lane     copies the left operand into a ring of stages, as far ahead as the ring is deep
//   warp 1, one lane     the right one; a single warp does not issue copies fast enough
//   warp 2               schedules: which tile comes next, told to all through a short queue
//   warp 3               side work: zeros in the tail of mm; in wgrad, asks for work ahead of the schedulers
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
#include "sm90/multiply.cuh"

namespace grouped::cuda::sm90 {

template <typename Work>
__device__ __forceinline__ void run_block(const typename Work::Params& params, unsigned char* memory) {
  using Shape = typename Work::Shape;
  const Shared<Shape> shared = {shared_address(memory)};
  const int warp = threadIdx.x / 32;
  const Work work(params);

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      barrier_init(shared.filled(stage), 2);
      barrier_init(shared.emptied(stage), 3 * RingReader<Shape>::kReaders);
      barrier_init(shared.cleaned(stage), 1);
    }
    for (int slot = 0; slot < shared.kTiles; ++slot) {
      barrier_init(shared.told(slot), 1);
      barrier_init(shared.heard(slot), TileQueue<Shape>::kListeners);
    }
    for (int index = 0; index < kMultipliers; ++index) {
      barrier_init(shared.may_go(index), 4);
      barrier_init(shared.may_write(index), 128);
      for (int piece = 0; piece < shared.kFetches; ++piece) barrier_init(shared.fetched(index, piece), 1);
    }
    for (int slot = 0; slot < shared.kFeedSlots; ++slot) {
      barrier_init(shared.fed(slot), 1);
      barrier_init(shared.forgotten(slot), kClusterBlocks);
    }
    barrier_init_fence();
    work.prefetch();
  }
  __syncwarp();
  cluster_sync();

  TileQueue<Shape> queue(shared, memory);
  if (warp < 4) {
    give_registers<kProducerRegisters<Shape>>();
    if (warp >= 2) wait_for_previous();  // all else follows from what the scheduler tells
    if (warp == 0) {
      if (elect_lane()) produce<typename Work::LeftLoader>(work, shared.left(0), shared, queue);
      __syncwarp();
    } else if (warp == 1) {
      if (elect_lane()) produce<typename Work::RightLoader>(work, shared.right(0), shared, queue);
      __syncwarp();
    } else if (warp == 2) {
      work.schedule(shared, queue);
    } else {
      work.side_work(shared);
      __syncwarp();
    }
  } else {
    take_registers<kMultiplierRegisters<Shape>>();
    const int index = warp / 4 - 1;
    RingReader<Shape> ring(shared, index);
    Staging<Shape> staging(shared, index);
    Accumulators<Shape> acc;
    constexpr bool kTakesTurns = Shape::kHalves == 2;
    static_assert(!kTakesTurns || !Work::kOldThroughRing, "old stages would keep the ring from the other");
    Cleaner<Shape> cleaner(shared, index);
    for (int turn = 0;; turn ^= 1) {
      const Tile tile = queue.hear_together();
      queue.advance();
      if (tile.is_end()) break;
      const int old_stages = Work::kOldThroughRing ? tile.old_stages() : 0;
      if (kTakesTurns && turn != index) {
        ring.skip(tile.num_blocks);
        continue;
      }
      staging.end_turn();  // of its last tile, whose pieces have left by now
      if (!tile.is_idle()) work.prepare(tile, staging);
      if (kTakesTurns) ring.begin_turn();
      if (tile.is_idle()) {
        // One lane speaks for its warp: the others must have seen the phase too, or they might miss it.
        for (int i = 0; i < tile.num_blocks + old_stages; ++i) {
          const int stage = ring.next();
          __syncwarp();
          ring.release(stage);
        }
        __syncwarp();
        if (kTakesTurns) ring.end_turn();
        staging.begin_turn();
        continue;
      }
      multiply_any<Work>(tile, index, shared, ring, cleaner, acc);
      int old_stage = 0;
      for (int i = 0; i < old_stages; ++i) {
        const int stage = ring.next();
        if (i == 0) old_stage = stage;
      }
      if (kTakesTurns && tile.num_blocks == 0) ring.end_turn();
      __syncwarp();
      staging.begin_turn();
      work.finish(tile, index, acc, shared, staging, ring, old_stage);
    }
    staging.end_turn();
    if (threadIdx.x % 32 == 0) store_wait();
    __syncwarp();
  }
  cluster_sync();  // nothing may still copy into, or arrive at, a block that has gone
}

// One block a multiprocessor, in clusters of two, for `tiles` pieces of work.
template <typename Work>
Status launch_block(void (*kernel)(typename Work::Params), int64_t tiles, const typename Work::Params& params,
                    const Launch& launch, Begin begin) {
  static std::atomic<uint64_t> shared_memory_allowed{0};
  constexpr int kBytes = Shared<typename Work::Shape>::kBytes;
  const Status allowed = allow_shared_memory(kernel, kBytes, launch.device, shared_memory_allowed);
  if (!allowed.ok()) return allowed;
  return launch_clusters(kernel, tiles, kClusterBlocks, dim3(kThreads), kBytes, launch, params, begin);
}

}  // namespace grouped::cuda::sm90
