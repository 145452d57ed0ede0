// SPDX-License-Identifier: Apache-2.0
// Threads for CPU calls that come from Python rather than from XLA, which brings its own.
#pragma once

#include "grouped/grouped.h"

namespace grouped::python_door {

// Runs on up to num_threads threads, the caller among them. Starts threads as they are first asked for; they
// are started anew in a forked child. Two calls at once share the threads.
grouped_executor pool_executor(int32_t num_threads);

}  // namespace grouped::python_door
