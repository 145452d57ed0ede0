// SPDX-License-Identifier: Apache-2.0
// The tables in the caller's workspace: where each group's rows and tasks begin.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/backend.h"
#include "core/offsets.h"
#include "cpu/tiling.h"

namespace grouped::cpu {

struct GroupTables {
  int64_t* offsets;     // [G + 1] first row of each group; the last is the first row of the tail
  int64_t* first_task;  // [G + 1] for operations whose tasks keep inside a group

  static size_t bytes(int64_t groups) { return static_cast<size_t>(groups + 1) * 2 * sizeof(int64_t); }

  GroupTables(void* workspace, int64_t groups)
      : offsets(static_cast<int64_t*>(workspace)), first_task(offsets + groups + 1) {}
};

// The group whose [starts[g], starts[g + 1]) holds `value`; groups without any are passed over.
inline int64_t group_holding(const int64_t* starts, int64_t groups, int64_t value) {
  int64_t low = 0, high = groups;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (starts[middle] <= value ? low : high) = middle;
  }
  return low;
}

}  // namespace grouped::cpu
