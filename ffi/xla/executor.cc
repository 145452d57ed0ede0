// SPDX-License-Identifier: Apache-2.0
#include "xla/executor.h"

#include <algorithm>
#include <functional>
#include <memory>

#include "doors/shared_loop.h"

namespace grouped::xla_door {
PoolExecutor::PoolExecutor(::xla::ffi::ThreadPool pool)
    : pool_(pool), executor_{this, &PoolExecutor::parallel_for, static_cast<int32_t>(pool.num_threads())} {}

void PoolExecutor::parallel_for(void* context, int64_t count, void (*body)(void*, int64_t), void* arg) {
  auto* self = static_cast<PoolExecutor*>(context);
  const auto work = std::make_shared<doors::SharedLoop>(count, body, arg);
  // One task at most for each thread of the pool beside the caller.
  const int64_t helpers = std::min<int64_t>(count - 1, self->executor_.num_threads);
  for (int64_t i = 0; i < helpers; ++i) {
    self->pool_.Schedule(std::function<void()>([work] { work->take_part(); }));
  }
  work->take_part();
  work->wait();
}

}  // namespace grouped::xla_door
