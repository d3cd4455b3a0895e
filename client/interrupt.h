// SPDX-License-Identifier: Apache-2.0
// InterruptScope: while it lives, Ctrl-C (SIGINT) calls a function instead of ending the program.
// At most one at a time.
#pragma once

#include <functional>
#include <thread>

namespace asynctls {

class InterruptScope {
 public:
  // `on_interrupt` runs in a thread of this scope, once per signal or less.
  explicit InterruptScope(std::function<void()> on_interrupt);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;

 private:
  int fd_;  // an eventfd: the handler adds 1, the destructor kStop
  std::function<void()> on_interrupt_;
  std::thread thread_;
};

}  // namespace asynctls
