// SPDX-License-Identifier: Apache-2.0
// Strips of consecutive elements of one row: 16-byte accesses where they are allowed, single elements
// elsewhere. Both ways a lane gets the same elements, so sums over strips have the same bits.
#pragma once

#include "common/pair.cuh"

namespace grouped::cuda {

// Elements of T in 16 bytes.
template <typename T>
inline constexpr int kStrip = 16 / sizeof(T);

// One 16-byte access.
template <typename T>
struct alignas(16) Strip {
  T elements[kStrip<T>];
};

// row[first..] as it is stored, first < end; 0 past `end`. `vectors` promises 16-byte alignment and whole
// strips.
template <typename T>
__device__ __forceinline__ Strip<T> read_strip(const T* row, int64_t first, int64_t end, bool vectors) {
  if (vectors) return *reinterpret_cast<const Strip<T>*>(row + first);
  Strip<T> strip;
#pragma unroll
  for (int i = 0; i < kStrip<T>; ++i) strip.elements[i] = first + i < end ? row[first + i] : T(0.0f);
  return strip;
}

template <typename T>
__device__ __forceinline__ void widen_strip(Accumulator<T> (&values)[kStrip<T>], const Strip<T>& strip) {
#pragma unroll
  for (int i = 0; i < kStrip<T>; ++i) values[i] = widen(strip.elements[i]);
}

// The same in accumulator precision.
template <typename T, int kCount>
__device__ __forceinline__ void load_strip(Accumulator<T> (&values)[kCount], const T* row, int64_t first,
                                           int64_t end, bool vectors) {
  static_assert(kCount % kStrip<T> == 0, "a strip is a whole number of 16-byte words");
#pragma unroll
  for (int w = 0; w < kCount / kStrip<T>; ++w) {
    const Strip<T> word = read_strip<T>(row, first + w * kStrip<T>, end, vectors);
#pragma unroll
    for (int i = 0; i < kStrip<T>; ++i) values[w * kStrip<T> + i] = widen(word.elements[i]);
  }
}

template <typename T, int kCount>
__device__ __forceinline__ void store_strip(T* row, int64_t first, int64_t end,
                                            const Accumulator<T> (&strip)[kCount], bool vectors) {
  static_assert(kCount % kStrip<T> == 0, "a strip is a whole number of 16-byte words");
  if (vectors) {
#pragma unroll
    for (int w = 0; w < kCount / kStrip<T>; ++w) {
      Strip<T> word;
      if constexpr (sizeof(T) == 2) {
        using Pair = decltype(narrow_pair(T(), 0.0f, 0.0f));
        static_assert(sizeof(Pair) == 2 * sizeof(T), "a word is whole pairs");
        Pair pairs[kStrip<T> / 2];
#pragma unroll
        for (int i = 0; i < kStrip<T>; i += 2)
          pairs[i / 2] = narrow_pair(T(), strip[w * kStrip<T> + i], strip[w * kStrip<T> + i + 1]);
        memcpy(&word, pairs, sizeof(word));
      } else {
#pragma unroll
        for (int i = 0; i < kStrip<T>; ++i) word.elements[i] = narrow<T>(strip[w * kStrip<T> + i]);
      }
      *reinterpret_cast<Strip<T>*>(row + first + w * kStrip<T>) = word;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (first + i < end) row[first + i] = narrow<T>(strip[i]);
    }
  }
}

// The same for an array that may hold accumulators instead of T.
template <typename T, int kCount>
__device__ __forceinline__ void load_strip(Accumulator<T> (&strip)[kCount], const EitherInput<T>& array,
                                           int64_t row, int64_t first, int64_t end, bool vectors) {
  if (array.is_wide) {
    load_strip<Accumulator<T>>(strip, static_cast<const Accumulator<T>*>(array.data) + row, first, end,
                               vectors);
  } else {
    load_strip<T>(strip, static_cast<const T*>(array.data) + row, first, end, vectors);
  }
}

// Writes zeros to [begin, end), shared among `threads` threads; this is number `thread`.
__device__ __forceinline__ void zero_bytes(char* begin, char* end, int64_t thread, int64_t threads) {
  const int64_t bytes = end - begin;
  const int64_t to_aligned = (16 - (reinterpret_cast<uintptr_t>(begin) & 15)) & 15;
  const int64_t head = to_aligned < bytes ? to_aligned : bytes;
  const int64_t words = (bytes - head) / 16;
  for (int64_t i = thread; i < words; i += threads)
    reinterpret_cast<uint4*>(begin + head)[i] = uint4{0, 0, 0, 0};
  for (int64_t i = thread; i < head; i += threads) begin[i] = 0;
  for (int64_t i = head + words * 16 + thread; i < bytes; i += threads) begin[i] = 0;
}

// The same, shared among all threads of the grid.
__device__ __forceinline__ void zero_bytes(char* begin, char* end) {
  zero_bytes(begin, end, blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x,
             gridDim.x * static_cast<int64_t>(blockDim.x));
}

}  // namespace grouped::cuda
