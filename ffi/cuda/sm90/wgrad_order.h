// SPDX-License-Identifier: Apache-2.0
// In which order the tiles of weight gradients are taken: arithmetic alone, which the host can check.
#pragma once

#include <cstdint>

#include "core/offsets.h"

namespace grouped::cuda::sm90 {

// The group at a place of an order, largest group first, if a large one and a small one are to alternate.
GROUPED_HD int32_t alternating(int32_t place, int32_t count) {
  return place % 2 == 0 ? place / 2 : count - 1 - place / 2;
}

// A result is walked band by band, in each down `band_rows` tiles before one column right: tiles that run
// together then share operands in L2. In 32 bits, because a tile of few rows does not last longer than a
// dozen divisions of 64; a result of 2^31 tiles fits in no memory.
class BandWalk {
 public:
  GROUPED_HD BandWalk(int32_t rows, int32_t columns, int32_t band_rows)
      : rows_(rows), columns_(columns), band_rows_(band_rows) {}

  GROUPED_HD void go_to(int32_t tile) {
    const uint32_t in_whole_band = static_cast<uint32_t>(band_rows_ * columns_);
    const uint32_t band = static_cast<uint32_t>(tile) / in_whole_band;
    first_ = static_cast<int32_t>(band) * band_rows_;
    const uint32_t in_band = static_cast<uint32_t>(tile) - band * in_whole_band;
    column = static_cast<int32_t>(in_band / static_cast<uint32_t>(height()));
    row = first_ + static_cast<int32_t>(in_band) - column * height();
  }
  GROUPED_HD void advance() {
    if (++row < first_ + height()) return;
    if (++column < columns_) {
      row = first_;
    } else {
      column = 0;
      first_ = row;
    }
  }

  int32_t row = 0, column = 0;

 private:
  GROUPED_HD int32_t height() const { return rows_ - first_ < band_rows_ ? rows_ - first_ : band_rows_; }

  int32_t rows_, columns_, band_rows_;
  int32_t first_ = 0;  // row of the band
};

}  // namespace grouped::cuda::sm90
