// SPDX-License-Identifier: Apache-2.0
// In which order the tiles of weight gradients are taken: arithmetic alone, which the host can check.
#pragma once

#include <cstdint>

#include "core/offsets.h"

namespace grouped::cuda::sm90 {

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

// Which piece of which place of the map's order.
struct WgradPiece {
  int32_t place, in_group;
};

GROUPED_HD WgradPiece piece_in_order(int64_t id, int32_t per_group) {
  const uint32_t place = static_cast<uint32_t>(id) / static_cast<uint32_t>(per_group);
  return {static_cast<int32_t>(place), static_cast<int32_t>(id) - static_cast<int32_t>(place) * per_group};
}

// The second half of each group's pieces by turns with the first half of the next one's. A group's operands
// come from memory with its first pieces; clusters that all began it at once would all wait for them, and
// then leave memory idle.
GROUPED_HD WgradPiece staggered_piece(int64_t id, int32_t per_group, int64_t groups) {
  const int32_t first_half = (per_group + 1) / 2;
  if (id < first_half) return {0, static_cast<int32_t>(id)};
  const WgradPiece at = piece_in_order(id - first_half, per_group);
  if (at.place == groups - 1) return {at.place, first_half + at.in_group};
  const int32_t pair = at.in_group / 2;
  if (at.in_group % 2 == 0) return {at.place + 1, pair};
  return {at.place, first_half + pair};
}

}  // namespace grouped::cuda::sm90
