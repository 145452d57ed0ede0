// SPDX-License-Identifier: Apache-2.0
// Host arrays of any dtype of the core, read and written as doubles, and the size of one rounding.
#pragma once

#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "grouped/grouped.h"

namespace sanitize {

inline constexpr int kDTypes[] = {GROUPED_BF16, GROUPED_F16, GROUPED_F32, GROUPED_F64};

int64_t size_of(int dtype);
const char* name_of(int dtype);
inline bool is_16bit(int dtype) { return dtype == GROUPED_BF16 || dtype == GROUPED_F16; }
inline int accumulator_of(int dtype) { return dtype == GROUPED_F64 ? GROUPED_F64 : GROUPED_F32; }

// Half the distance between neighbours of `dtype` at |value|.
double half_ulp(int dtype, double value);

// Half an ulp of 1 in the dtype in which sums of `dtype` are kept.
inline double accumulator_epsilon(int dtype) { return dtype == GROUPED_F64 ? 0x1p-53 : 0x1p-24; }

struct Array {
  int dtype = GROUPED_F32;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;

  Array() = default;
  // Every byte 0xff, which is a NaN in every dtype of the core and -1 in an integer.
  Array(int dtype, std::vector<int64_t> shape);

  int64_t count() const {
    return size_of(dtype) == 0 ? 0 : static_cast<int64_t>(bytes.size()) / size_of(dtype);
  }
  double get(int64_t i) const;
  void set(int64_t i, double value);
  // Uniform in [-1, 1], elements [begin, end).
  void randomize(std::mt19937_64& rng, int64_t begin, int64_t end);
  void randomize(std::mt19937_64& rng) { randomize(rng, 0, count()); }
};

}  // namespace sanitize
