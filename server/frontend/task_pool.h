// SPDX-License-Identifier: Apache-2.0
// TaskPool: a few threads and one queue, for work that must not run in a gRPC reaction or on the
// engine thread (tokenizing, detokenizing). Callers bound what they submit.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"

namespace asynctls {

class TaskPool {
 public:
  using Task = absl::AnyInvocable<void()>;

  explicit TaskPool(int threads);
  // Runs what is queued, then joins.
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  // Any thread; never blocks. Tasks start in order.
  void Submit(Task task);

 private:
  void Run();

  std::mutex mu_;  // a std one: ThreadSanitizer cannot see inside Debian's absl::Mutex
  std::condition_variable wake_;
  std::deque<Task> tasks_;  // guarded by mu_
  bool closing_ = false;    // guarded by mu_

  std::vector<std::thread> threads_;
};

}  // namespace asynctls
