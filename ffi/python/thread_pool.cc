// SPDX-License-Identifier: Apache-2.0
#include "python/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "doors/shared_loop.h"

namespace grouped::python_door {
namespace {

using doors::SharedLoop;

class Pool {
 public:
  void post(const std::shared_ptr<SharedLoop>& work, int64_t helpers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (; threads_ < helpers; ++threads_) std::thread([this] { serve(); }).detach();
    for (int64_t i = 0; i < helpers; ++i) queue_.push_back(work);
    wake_.notify_all();
  }

 private:
  void serve() {
    for (;;) {
      std::shared_ptr<SharedLoop> work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return !queue_.empty(); });
        work = std::move(queue_.front());
        queue_.pop_front();
      }
      work->take_part();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<SharedLoop>> queue_;
  int64_t threads_ = 0;
};

// Never destroyed: its threads may still wait in it when the process ends. A forked child has none of the
// threads and may have inherited a held lock, so it gets a new one.
Pool* pool = nullptr;

Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

void parallel_for(void* context, int64_t count, void (*body)(void*, int64_t), void* arg) {
  const int64_t threads = static_cast<int64_t>(reinterpret_cast<intptr_t>(context));
  const int64_t helpers = std::min<int64_t>(count, threads) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) body(arg, i);
    return;
  }
  const auto work = std::make_shared<SharedLoop>(count, body, arg);
  the_pool().post(work, helpers);
  work->take_part();
  work->wait();
}

}  // namespace

grouped_executor pool_executor(int32_t num_threads) {
  const int32_t threads = std::max(num_threads, 1);
  return {reinterpret_cast<void*>(static_cast<intptr_t>(threads)), parallel_for, threads};
}

}  // namespace grouped::python_door
