// SPDX-License-Identifier: Apache-2.0
// Tasks on the caller's threads, and rows cut into tasks.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/backend.h"
#include "cpu/denormals.h"
#include "cpu/tiling.h"

namespace grouped::cpu {

inline int64_t thread_count(const Launch& launch) {
  return launch.executor && launch.executor->num_threads > 1 ? launch.executor->num_threads : 1;
}

// body(i) for i in 0..count, each under our floating-point mode. The executor is C: nothing may be thrown
// through it.
template <typename Body>
void parallel_for(const Launch& launch, int64_t count, const Body& body) {
  void (*const run)(void*, int64_t) = [](void* arg, int64_t i) {
    const FloatingPointScope mode;
    (*static_cast<const Body*>(arg))(i);
  };
  void* const arg = const_cast<void*>(static_cast<const void*>(&body));
  if (count > 1 && thread_count(launch) > 1) {
    launch.executor->parallel_for(launch.executor->context, count, run, arg);
    return;
  }
  for (int64_t i = 0; i < count; ++i) run(arg, i);
}

// A row-major result, for zeroing its tail. data may be null.
struct Rows {
  void* data;
  int64_t bytes_per_row;

  void zero(int64_t begin, int64_t end) const {
    if (!data || begin >= end || bytes_per_row == 0) return;
    memset(static_cast<char*>(data) + begin * bytes_per_row, 0,
           static_cast<size_t>((end - begin) * bytes_per_row));
  }
};

// Rows of a task that moves some 64 Ki elements: enough to pay for the hand-over to a thread.
inline int64_t rows_per_task(int64_t elements_per_row) {
  return larger(1, 65536 / larger(1, elements_per_row));
}

}  // namespace grouped::cpu
