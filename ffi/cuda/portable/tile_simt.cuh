// SPDX-License-Identifier: Apache-2.0
// acc = A[M,R] B[R,N] in fp32 or fp64 fma chains: the loop that grouped_mm and grouped_wgrad share for these
// types. Every element is one chain over R from 0, in order, padded with zeros to a multiple of 16.
//
//   Major::kReduction: the array is [outer, R].   Major::kOuter: the array is [R, outer].
//
// Shared memory, twice (one read while the other is filled):
//   A [16 R][tile + pad]   B [16 R][tile + pad]   pad: 16 bytes, to spread transposing stores over the banks
#pragma once

#include "common/convert.cuh"
#include "core/math.h"
#include "portable/major.h"

namespace grouped::cuda {

inline constexpr int kSimtThreads = 256;  // 16 x 16
inline constexpr int kSimtReduce = 16;    // of R, in one step

// A thread computes two strips of 16 bytes, half a tile apart, in either direction.
template <typename T>
inline constexpr int kSimtVector = 16 / sizeof(T);
template <typename T>
inline constexpr int kSimtThreadTile = 2 * kSimtVector<T>;
template <typename T>
inline constexpr int kSimtTile = 16 * kSimtThreadTile<T>;  // fp32: 128, fp64: 64

template <typename T>
struct SimtShared {
  static constexpr int kPitch = kSimtTile<T> + kSimtVector<T>;
  alignas(16) T a[2][kSimtReduce][kPitch];
  alignas(16) T b[2][kSimtReduce][kPitch];
};

template <typename T>
using SimtAccumulator = T[kSimtThreadTile<T>][kSimtThreadTile<T>];

// Where strip element i of this thread lies in the tile, along the direction that `thread` counts.
template <typename T>
__device__ __forceinline__ int simt_place(int thread, int i) {
  constexpr int kVector = kSimtVector<T>;
  return i / kVector * (16 * kVector) + thread * kVector + i % kVector;
}

// Brings one operand from global memory through registers to shared memory, 16 of R at each turn.
template <typename T, Major kMajor>
class SimtLoader {
  static constexpr int kTileSize = kSimtTile<T>;
  static constexpr int kPerThread = kTileSize * kSimtReduce / kSimtThreads;
  static constexpr int kLine = kMajor == Major::kReduction ? kSimtReduce : kTileSize;
  static constexpr int kLineStep = kSimtThreads / kLine;

 public:
  // `origin` is element (0, 0) of the window, `pitch` its row length in the array.
  __device__ __forceinline__ SimtLoader(const T* origin, int64_t pitch, int64_t outer)
      : pitch_(pitch),
        outer_(outer < kTileSize ? static_cast<int>(outer) : kTileSize),
        line_(threadIdx.x / kLine),
        column_(threadIdx.x % kLine) {
    next_ = origin + line_ * pitch + column_;
  }

  // `left` counts what is left of R, this turn included.
  __device__ __forceinline__ void fetch(int64_t left) {
    const int reduction = left < kSimtReduce ? static_cast<int>(left) : kSimtReduce;
    const int lines = kMajor == Major::kReduction ? outer_ : reduction;
    const int columns = kMajor == Major::kReduction ? reduction : outer_;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const bool inside = line_ + i * kLineStep < lines && column_ < columns;
      staged_[i] = inside ? next_[i * kLineStep * pitch_] : T(0);
    }
    next_ += kMajor == Major::kReduction ? kSimtReduce : kSimtReduce * pitch_;
  }

  __device__ __forceinline__ void put(T (&shared)[kSimtReduce][SimtShared<T>::kPitch]) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int line = line_ + i * kLineStep;
      if constexpr (kMajor == Major::kReduction) {
        shared[column_][line] = staged_[i];
      } else {
        shared[line][column_] = staged_[i];
      }
    }
  }

 private:
  const T* next_;
  int64_t pitch_;
  int outer_;
  int line_, column_;
  T staged_[kPerThread];
};

template <typename T>
__device__ __forceinline__ void simt_read(T (&out)[kSimtThreadTile<T>], const T* line, int thread) {
  struct alignas(16) Vector {
    T v[kSimtVector<T>];
  };
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Vector vector =
        *reinterpret_cast<const Vector*>(line + simt_place<T>(thread, half * kSimtVector<T>));
#pragma unroll
    for (int i = 0; i < kSimtVector<T>; ++i) out[half * kSimtVector<T> + i] = vector.v[i];
  }
}

// Threads (ty, tx) = (threadIdx.x / 16, threadIdx.x % 16) hold rows simt_place(ty, .) and columns
// simt_place(tx, .). On return no thread reads shared memory any more.
template <typename T, Major kA, Major kB>
__device__ __forceinline__ void multiply_tile_simt(SimtShared<T>& shared, SimtLoader<T, kA> a,
                                                   SimtLoader<T, kB> b, int64_t reduction,
                                                   SimtAccumulator<T>& acc) {
  constexpr int kThreadTile = kSimtThreadTile<T>;
#pragma unroll
  for (int i = 0; i < kThreadTile; ++i) {
#pragma unroll
    for (int j = 0; j < kThreadTile; ++j) acc[i][j] = T(0);
  }
  const int ty = threadIdx.x / 16;
  const int tx = threadIdx.x % 16;
  if (reduction > 0) {
    a.fetch(reduction);
    b.fetch(reduction);
    a.put(shared.a[0]);
    b.put(shared.b[0]);
  }
  __syncthreads();
  int now = 0;
  for (int64_t left = reduction; left > 0; left -= kSimtReduce) {
    const bool more = left > kSimtReduce;
    if (more) {
      a.fetch(left - kSimtReduce);
      b.fetch(left - kSimtReduce);
    }
#pragma unroll 8
    for (int r = 0; r < kSimtReduce; ++r) {
      T row[kThreadTile];
      T column[kThreadTile];
      simt_read<T>(row, shared.a[now][r], ty);
      simt_read<T>(column, shared.b[now][r], tx);
#pragma unroll
      for (int i = 0; i < kThreadTile; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadTile; ++j) acc[i][j] = multiply_add(row[i], column[j], acc[i][j]);
      }
    }
    // The other buffer was read a step ago, before the barrier below.
    if (more) {
      a.put(shared.a[now ^ 1]);
      b.put(shared.b[now ^ 1]);
    }
    now ^= 1;
    __syncthreads();
  }
}

}  // namespace grouped::cuda
