// SPDX-License-Identifier: Apache-2.0
// A loop whose iterations several threads take from one counter, the calling thread among them. The caller
// waits for iterations in flight, never for a helper that has not begun, so a busy pool cannot deadlock it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace grouped::doors {

// Shared by pointer: a helper may begin after all work is done and must still find the counters.
class SharedLoop {
 public:
  SharedLoop(int64_t count, void (*body)(void*, int64_t), void* arg)
      : count_(count), body_(body), arg_(arg) {}

  void take_part() {
    int64_t mine = 0;
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_; ++mine) body_(arg_, i);
    if (mine == 0) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    done_ += mine;
    if (done_ == count_) all_done_.notify_all();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [this] { return done_ == count_; });
  }

 private:
  const int64_t count_;
  void (*const body_)(void*, int64_t);
  void* const arg_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
  int64_t done_ = 0;
};

}  // namespace grouped::doors
