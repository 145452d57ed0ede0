// SPDX-License-Identifier: Apache-2.0
#include "core/offsets.h"

namespace grouped {
namespace {

int64_t value_at(const GroupSizes& sizes, int64_t g) {
  return sizes.is_64bit ? static_cast<const int64_t*>(sizes.data)[g]
                        : static_cast<const int32_t*>(sizes.data)[g];
}

std::string misfit(const GroupSizes& sizes, int64_t g, int64_t value, int64_t offset) {
  const std::string at = "group_sizes[" + std::to_string(g) + "] = " + std::to_string(value);
  if (sizes.are_ends && value < offset) {
    return at + " as an end lies before the end of the group before it, " + std::to_string(offset) +
           ". Ends must not decrease.";
  }
  if (value < 0) return at + " is negative. A group holds 0 rows or more.";
  const int64_t rest = sizes.rows - offset;
  return at + " does not fit: group " + std::to_string(g) + " begins at row " + std::to_string(offset) +
         " of T=" + std::to_string(sizes.rows) + ", so " + std::to_string(rest) +
         " rows are left. sum(group_sizes) must be at most T.";
}

}  // namespace

Status resolve_offsets(const GroupSizes& sizes, bool check, int64_t* offsets) {
  int64_t offset = 0;
  offsets[0] = 0;
  for (int64_t g = 0; g < sizes.count; ++g) {
    const int64_t value = value_at(sizes, g);
    if (check) {
      const bool fits = sizes.are_ends ? value >= offset && value <= sizes.rows
                                       : value >= 0 && value <= sizes.rows - offset;
      if (!fits) return Status(GROUPED_BAD_VALUE, misfit(sizes, g, value, offset));
    }
    offset = next_offset(offset, value, sizes.are_ends, sizes.rows);
    offsets[g + 1] = offset;
  }
  return Status();
}

}  // namespace grouped
