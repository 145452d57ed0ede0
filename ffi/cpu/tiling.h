// SPDX-License-Identifier: Apache-2.0
// How a matrix product is cut into tasks. No cut changes a result: an element's sum never leaves its own
// chain.
#pragma once

#include <cstdint>

namespace grouped::cpu {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// One task's part of a result, and the most that its buffers on the stack hold.
template <typename A>
struct TileLimits {
  static constexpr int64_t kRows = 512;
  static constexpr int64_t kColumns = sizeof(A) == 4 ? 256 : 128;
  static constexpr int64_t kSteps = 256;  // of the contraction, packed at a time
};

// Columns go in whole vectors of every instruction set.
constexpr int64_t kColumnGranule = 32;

// Parts of equal size rather than full ones and a small rest.
struct Cut {
  int64_t count = 0, size = 0;
  int64_t begin(int64_t i) const { return i * size; }
};

constexpr Cut cut_evenly(int64_t extent, int64_t most, int64_t granule) {
  if (extent <= 0) return {};
  const int64_t count = ceil_div(extent, most);
  const int64_t size = ceil_div(ceil_div(extent, count), granule) * granule;
  return {ceil_div(extent, size), size};
}

struct Tile {
  int64_t group;
  int64_t row, rows;  // of the result
  int64_t column, columns;
};

}  // namespace grouped::cpu
