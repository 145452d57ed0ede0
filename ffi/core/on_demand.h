// SPDX-License-Identifier: Apache-2.0
// A call whose workspace is allocated when its problem is found to use it: what grouped_workspace_size()
// answers must hold for every T and every alignment, and a door that allocates for each call would often do
// so in vain.
#pragma once

#include <cstddef>

#include "grouped/grouped.h"

namespace grouped {

struct WorkspaceSource {
  void* (*allocate)(void* context, size_t bytes);  // null: there is no memory
  void* context;
};

// `op` as its function in grouped.h runs it, on `args`, its structure. `launch` brings no workspace.
int32_t run_on_demand(int32_t op, const void* args, const grouped_launch& launch,
                      const WorkspaceSource& source, grouped_status* status);

}  // namespace grouped
