// SPDX-License-Identifier: Apache-2.0
// Which problems the Hopper kernels take, and in which configuration. Pure functions. The family (these
// kernels or the portable ones) may depend on device, dtype, K, N, storage and alignment alone, because it
// changes bits; a configuration changes none.
#pragma once

#include <string>

#include "core/problem.h"

namespace grouped::cuda::sm90 {

struct Config {
  int columns;  // of a tile of 128 rows: 256 or 128
  int cluster;  // blocks that share an operand: 1 or 2
  bool pairs;   // mm: no cluster takes row tiles of two groups
};

inline std::string to_string(const Config& c) {
  return "sm90 128x" + std::to_string(c.columns) + "x64 cluster " + std::to_string(c.cluster) +
         (c.pairs ? " paired" : "");
}

inline bool rows_fit(const void* data, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_bytes % 16 == 0;
}

// What the copy engine can address: 32-bit coordinates, strides below 2^40 bytes.
inline bool dims_fit(int64_t T, int64_t K, int64_t N, int64_t G) {
  constexpr int64_t kMaxCoordinate = (int64_t{1} << 31) - 512;
  constexpr int64_t kMaxStride = int64_t{1} << 40;
  return T < kMaxCoordinate && G < kMaxCoordinate && K < kMaxCoordinate && N < kMaxCoordinate &&
         K < kMaxStride / 4 / (N > 0 ? N : 1);
}

inline bool is_16bit(DType t) { return t == DType::kF16 || t == DType::kBF16; }

// `capability`: major * 10 + minor of the device. Without rows or groups there is no sum, so no bits to
// differ.
inline bool can_take(const MmProblem& p, int capability) {
  return capability == 90 && is_16bit(p.in) && p.T > 0 && p.G > 0 && p.K > 0 && p.N > 0 &&
         dims_fit(p.T, p.K, p.N, p.G) && rows_fit(p.x, p.K * 2) &&
         rows_fit(p.weight, (p.weight_is_gkn ? p.N : p.K) * 2) && rows_fit(p.out, p.N * 2);
}
inline bool can_take(const WgradProblem& p, int capability) {
  return capability == 90 && is_16bit(p.in) && p.T > 0 && p.G > 0 && p.K > 0 && p.N > 0 &&
         dims_fit(p.T, p.K, p.N, p.G) && rows_fit(p.x, p.K * 2) && rows_fit(p.dy, p.N * 2) &&
         rows_fit(p.out, 16);
}

// Pairs within groups halve the traffic of an operand, but an odd count of columns leaves a block without
// work at the end of each odd group.
inline Config mm_config(int64_t, int64_t N, bool) {
  const int columns = N <= 128 ? 128 : 256;
  const int64_t column_tiles = (N + columns - 1) / columns;
  return {columns, 2, column_tiles % 2 == 0 || column_tiles > 8};
}

inline Config wgrad_config(int64_t K, int64_t N, bool out_is_gkn) {
  return {(out_is_gkn ? N : K) <= 128 ? 128 : 256, 2, false};
}

}  // namespace grouped::cuda::sm90
