// SPDX-License-Identifier: Apache-2.0
// Which problems the Hopper kernels take, and in which configuration. Pure functions. The family (these
// kernels or the portable ones) may depend on device, dtype, K, N, storage and alignment alone, because it
// changes bits; a configuration changes none.
#pragma once

#include <algorithm>
#include <string>

#include "core/problem.h"

namespace grouped::cuda::sm90 {

// See TakeTurns, ShareTiles (shape.cuh), WidthCut (cut.cuh), PieceFeed (piece_feed.cuh).
struct Config {
  bool takes_turns;
  // Of mm alone.
  bool cuts_evenly;
  bool in_order;  // groups as they come; else by the width of their tiles, the widest first
  // Of both.
  bool on_demand;  // clusters ask for work, by halves of L2; else they take turns
  // Of wgrad alone.
  bool large_buffers;   // for results, for a stage less; where turns are taken
  bool asks_ahead;      // on demand: a piece ahead, and all take the first that is left
  bool alternates;      // asked ahead: the largest group, the smallest, the next largest
  bool from_both_ends;  // asked ahead: but one half from the largest group on, the other from the smallest
  int band_rows;        // rows of tiles that are walked down before one column right
};

inline std::string to_string(const Config& c) {
  return std::string("sm90 ") +
         (c.takes_turns ? "128x192, multipliers take turns" : "128x256, multipliers share") +
         (c.large_buffers ? ", large buffers" : "") + (c.cuts_evenly ? ", groups cut evenly" : "") +
         (c.in_order ? ", in order" : "") + (c.on_demand ? ", on demand" : "") +
         (c.asks_ahead ? " ahead" : "") + (c.alternates ? " alternating" : "") + (c.from_both_ends ? " from both ends" : "") +
         (c.band_rows > 0 ? ", in bands of " + std::to_string(c.band_rows) : "");
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

// Of `rows` by a K x N weight. Work on demand needs a kernel in front, which takes 3 to 6 us, so it begins at
// about 100 us.
inline bool is_large(int64_t rows, int64_t K, int64_t N) {
  return static_cast<double>(rows) * static_cast<double>(K) * static_cast<double>(N) >= 0x1p35;
}

// Of memory, for a multiprocessor in one cycle (memory_bytes_per_cycle()): an H200 has it, an H100 not.
inline bool is_fast_memory(int bytes_per_cycle) { return bytes_per_cycle >= 15; }

// Measured: docs/kernel-log.md. Turns overlap the writing of results with products, but their narrower tiles
// fetch more for each product. Where memory is slow that decides with few rows a group, and above 8192: there
// a tile lasts long, and tiles of one width keep the blocks together, so that they find in L2 what the others
// fetched. The widest first balances the work; where groups are many and small, chance balances it, and
// narrow tiles, which wait for memory, had better run beside wide ones, which do not.
inline Config mm_config(int64_t T, int64_t K, int64_t N, int64_t G, int memory_bytes) {
  Config config = {};
  const bool is_fast = is_fast_memory(memory_bytes);
  const bool is_long = K > 8192 && !is_fast;
  config.takes_turns = is_fast || (!is_long && T > 256 * G);
  config.cuts_evenly = !is_long;
  config.in_order = !is_long && G >= 64 && T <= 512 * G;
  config.on_demand = is_large(T, K, N);
  return config;
}

// Where multipliers take turns, what the result held is fetched while the other one multiplies, 8 KB at a
// time, which takes as long as the products of about 1000 rows; with large buffers, of 256. With few rows a
// group the writing of results decides, at the rate of slow memory; fast memory takes more than small buffers
// give it. There all clusters work on one group; else two halves that begin at both ends read each group
// through one half of L2, and tiles of large groups, which multiply, run beside tiles of small ones, which
// write. With thousands of rows a group that would fetch operands more often. Low bands write whole rows of
// the result at once, which memory likes; high ones read fewer columns.
inline Config wgrad_config(int64_t T, int64_t K, int64_t N, int64_t G, bool accumulate, int memory_bytes) {
  Config config = {};
  const bool is_fast = is_fast_memory(memory_bytes);
  const bool is_fine = T <= 1024 * G;
  if (accumulate) {
    config.takes_turns = is_fast ? T >= 256 * G : T > 1024 * G;
    config.large_buffers = config.takes_turns && is_fast;
  } else {
    config.takes_turns = is_fast || T >= 256 * G;
    config.large_buffers = is_fast && T < 384 * G;
  }
  // Writing an element takes as long as 256 products.
  config.on_demand = is_large(std::max(T, 256 * G), K, N);
  config.asks_ahead = config.on_demand && is_fine;
  config.from_both_ends = config.asks_ahead && !(is_fast && config.takes_turns);
  config.alternates = config.asks_ahead && !config.from_both_ends;
  config.band_rows = T <= 512 * G ? 4 : is_fine && !accumulate ? 16 : 8;
  return config;
}

}  // namespace grouped::cuda::sm90
