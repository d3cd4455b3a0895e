// SPDX-License-Identifier: Apache-2.0
// Queue: many producers, one consumer that takes everything there is. Unbounded; whoever pushes
// has been admitted elsewhere. A std::mutex, because ThreadSanitizer cannot see inside Debian's
// absl::Mutex.
#pragma once

#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace asynctls {

template <class T>
class Queue {
 public:
  // Any thread; never blocks.
  void Push(T item) {
    {
      std::lock_guard lock(mu_);
      items_.push_back(std::move(item));
    }
    cv_.notify_one();
  }

  // The consumer: waits until something is there or `deadline` has passed, then takes all of it,
  // in order of arrival. Empty only after the deadline.
  std::vector<T> PopAll(absl::Time deadline) {
    std::unique_lock lock(mu_);
    const auto ready = [this] { return !items_.empty(); };
    if (deadline == absl::InfiniteFuture()) {
      cv_.wait(lock, ready);
    } else {
      cv_.wait_until(lock, absl::ToChronoTime(deadline), ready);
    }
    return std::exchange(items_, {});
  }

 private:
  std::mutex mu_;
  std::condition_variable cv_;
  std::vector<T> items_;  // guarded by mu_
};

}  // namespace asynctls
