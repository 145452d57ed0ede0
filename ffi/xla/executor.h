// SPDX-License-Identifier: Apache-2.0
// XLA's CPU thread pool as a grouped_executor. The caller takes part and never waits for a task that has not
// begun, so a busy pool (or one of whose threads calls us) cannot deadlock.
#pragma once

#include "grouped/grouped.h"
#include "xla/ffi/api/ffi.h"

namespace grouped::xla_door {

class PoolExecutor {
 public:
  explicit PoolExecutor(::xla::ffi::ThreadPool pool);
  const grouped_executor* get() const { return &executor_; }

 private:
  static void parallel_for(void* context, int64_t count, void (*body)(void*, int64_t), void* arg);

  ::xla::ffi::ThreadPool pool_;
  grouped_executor executor_;
};

}  // namespace grouped::xla_door
