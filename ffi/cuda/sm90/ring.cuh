// SPDX-License-Identifier: Apache-2.0
// How the warps of a block hand each other work: the queue of tiles, the ring of operand stages, the buffers
// through which results leave.
#pragma once

#include "sm90/shape.cuh"

namespace grouped::cuda::sm90 {

// The scheduler's end and the listeners' end of the tile queue.
template <typename Shape>
class TileQueue {
 public:
  static constexpr uint32_t kListeners = 2 + kMultipliers * 4;  // warps

  __device__ __forceinline__ TileQueue(Shared<Shape> shared, unsigned char* memory)
      : shared_(shared), tiles_(reinterpret_cast<int4*>(memory + Shared<Shape>::kTileQueue)) {}

  // Both by all lanes of the scheduling warp. Who waits for room before taking work leaves more of the last
  // to the others.
  __device__ __forceinline__ void wait_for_room() const {
    barrier_wait(shared_.heard(cursor_.at), cursor_.parity ^ 1);
    __syncwarp();  // a lane left behind could miss the phase: one lane tells for all
  }
  __device__ __forceinline__ void tell(const Tile& tile) {
    wait_for_room();
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
  // Both by a whole warp. One lane reads for all, so that no read is ordered by a meeting of the warp alone.
  __device__ __forceinline__ Tile hear_together() {
    int words[8];
    if (threadIdx.x % 32 == 0) {
      const Tile tile = hear();
      forget();
      memcpy(words, &tile, sizeof(tile));
    }
    Tile tile;
#pragma unroll
    for (int& word : words) word = __shfl_sync(0xffffffffu, word, 0);
    memcpy(&tile, words, sizeof(tile));
    return tile;
  }
  __device__ __forceinline__ void advance() { cursor_.advance(); }

 private:
  Shared<Shape> shared_;
  int4* tiles_;
  Cursor<Shared<Shape>::kTiles> cursor_;
};

// One operand of all tiles, by one lane. `Loader` is made of the work's parameters and a tile: bytes() of a
// block's stage; load(each_stage) calls each_stage(copy) once, and copy(to, filled, block) fills the stage of
// a block, so that what a tile decides is decided once. Behind the operands come the stages of what the
// result held before: load_old() fills one, or only arrives where the other operand's loader does it.
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
    loader.load([&](const auto& copy) {
#pragma unroll 1
      for (int block = 0; block < tile.num_blocks; ++block) {
        barrier_wait(shared.emptied(ring.at), ring.parity ^ 1);
        const uint32_t filled = shared.filled(ring.at);
        barrier_expect(filled, loader.bytes(block));
        copy(first_stage + ring.at * shared.kStageBytes, filled, block);
        ring.advance();
      }
    });
    if constexpr (Work::kOldThroughRing) {
      for (int i = 0; i < tile.old_stages(); ++i) {
        barrier_wait(shared.emptied(ring.at), ring.parity ^ 1);
        loader.load_old(i, shared.left(ring.at), shared.filled(ring.at));
        ring.advance();
      }
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

  __device__ __forceinline__ RingReader(Shared<Shape> shared, int index)
      : shared_(shared), index_(index), turn_(index == 0 ? 1 : 0) {}

  __device__ __forceinline__ void begin_turn() {
    barrier_wait(shared_.may_go(index_), turn_);
    __syncwarp();  // one lane ends the turn for all
    turn_ ^= 1;
  }
  // By each warp, because one that lags behind must not miss a phase of the barrier it waits for: the other's
  // turn begins when all of this one's warps have begun theirs.
  __device__ __forceinline__ void end_turn() const {
    if (threadIdx.x % 32 == 0) barrier_arrive(shared_.may_go(1 - index_));
  }
  static __device__ __forceinline__ int after(int stage) {
    return stage + 1 == Shape::kStages ? 0 : stage + 1;
  }

  // Whether the next stage is filled already.
  __device__ __forceinline__ bool peek() const {
    return barrier_has_passed(shared_.filled(cursor_.at), cursor_.parity);
  }
  // Waits for the next stage, if the last peek() did not see it filled; its number, by a shuffle: all lanes
  // have the same, but only so the compiler knows it, keeps operands' descriptors in uniform registers and
  // steps them there.
  __device__ __forceinline__ int next(bool is_filled = false) {
    const int stage = __shfl_sync(0xffffffffu, cursor_.at, 0);
    if (!is_filled) barrier_wait(shared_.filled(stage), cursor_.parity);
    cursor_.advance();
    return stage;
  }
  // Tells both blocks that this warp has read the stage: its own as a local barrier, so that tools which
  // watch shared memory see what orders this block's reads and the next use of the stage.
  __device__ __forceinline__ void release(int stage) const {
    if (threadIdx.x % 32 != 0) return;
    barrier_arrive(shared_.emptied(stage));
    barrier_arrive_at(shared_.emptied(stage), cluster_rank() ^ 1);
    barrier_arrive_at(shared_.emptied(stage), cluster_rank() ^ 2);
  }
  // Past stages that are the other multiplier's.
  __device__ __forceinline__ void skip(int stages) { cursor_.skip(stages); }

 private:
  Shared<Shape> shared_;
  int index_;
  uint32_t turn_;
  Cursor<Shape::kStages> cursor_;
};

// Buffers through which one multiplier's result leaves: each piece by next(), written(), sent(). Where what
// the result held comes here too, by fetch(), well before, then fetched(), added(), sent().
template <typename Shape>
class Staging {
  // With three or more, the thread that sends the pieces makes sure that the next one is free before all meet
  // over the one that they wrote. With two that would wait for the copy just begun, so they meet once more.
  static constexpr bool kMeetsOnce = Shape::kPieces > 2;
  static_assert(kMeetsOnce || !Shape::kSharesBuffers, "all of a turn's buffers are free when it begins");

 public:
  __device__ __forceinline__ Staging(Shared<Shape> shared, int index)
      : shared_(shared), buffers_(shared.staging(index)), index_(index), turn_(index == 0 ? 1 : 0) {}

  // Where the multipliers share the buffers each has them for all pieces of a tile, by turns. begin_turn()
  // waits until the other's pieces have left them.
  __device__ __forceinline__ void begin_turn() {
    if constexpr (Shape::kSharesBuffers) {
      barrier_wait(shared_.may_write(index_), turn_);
      __syncwarp();  // whole warps write the pieces
      turn_ ^= 1;
      has_turn_ = true;
      slot_ = 0;
    }
  }
  // If a turn has begun. Well after the last piece was sent, since this waits until the copy engine has read
  // it. By each thread, as it may have read the buffers itself: racecheck follows neither meetings of a warp
  // nor named barriers that some only arrive at.
  __device__ __forceinline__ void end_turn() {
    if (!Shape::kSharesBuffers || !has_turn_) return;
    has_turn_ = false;
    if (threadIdx.x % 128 == 0) store_wait_read<0>();
    barrier_arrive(shared_.may_write(1 - index_));
  }

  // Where to write the next piece.
  __device__ __forceinline__ uint32_t next() const {
    if constexpr (!kMeetsOnce) {
      if (threadIdx.x % 128 == 0) store_wait_read<Shape::kPieces - 1>();
      named_barrier<128>(1 + index_);
    }
    return buffer(slot_);
  }
  // All threads have written it, and the copy engine may read it. `piece`: its number in the tile, `pieces`:
  // those of the tile.
  __device__ __forceinline__ void written(int piece, int pieces) const {
    async_proxy_fence();
    const bool needs_next = !Shape::kSharesBuffers || (piece + 1 >= Shape::kPieces && piece + 1 < pieces);
    if (kMeetsOnce && needs_next && threadIdx.x % 128 == 0) store_wait_read<Shape::kPieces - 2>();
    named_barrier<128>(1 + index_);
  }
  // Its copies, if any, are under way.
  __device__ __forceinline__ void sent() {
    if (threadIdx.x % 128 == 0) store_commit();
    advance();
  }

  // By the sending thread: `copy(to, filled)` begins to fill the buffer of the next piece, or of the one
  // `ahead` behind it. The copy engine must have read what they held.
  template <typename Copy>
  __device__ __forceinline__ void fetch(int ahead, const Copy& copy) const {
    const int slot = slot_ + ahead < Shape::kPieces ? slot_ + ahead : slot_ + ahead - Shape::kPieces;
    const uint32_t filled = shared_.fetched(index_, slot);
    barrier_expect(filled, Shared<Shape>::kPieceBytes);
    copy(buffer(slot), filled);
  }
  // Where the next piece's old values are, and its new ones go.
  __device__ __forceinline__ uint32_t fetched() const {
    barrier_wait(shared_.fetched(index_, slot_), parity_);
    __syncwarp();
    return buffer(slot_);
  }
  // All threads have added to it, and the copy engine may read it. That the next buffer is free is for its
  // own barrier to say.
  __device__ __forceinline__ void added() const {
    async_proxy_fence();
    named_barrier<128>(1 + index_);
  }
  // By the sending thread: then only the newest of its pieces may still be read.
  __device__ __forceinline__ void wait_for_older() const { store_wait_read<1>(); }

 private:
  __device__ __forceinline__ uint32_t buffer(int slot) const {
    return buffers_ + slot * Shared<Shape>::kPieceBytes;
  }
  __device__ __forceinline__ void advance() {
    if (++slot_ == Shape::kPieces) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }

  Shared<Shape> shared_;
  uint32_t buffers_;
  int index_;
  uint32_t turn_;  // the parity of the next one
  bool has_turn_ = false;
  int slot_ = 0;
  uint32_t parity_ = 0;  // of the barriers of fetched pieces
};

}  // namespace grouped::cuda::sm90
