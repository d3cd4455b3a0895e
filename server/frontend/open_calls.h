// SPDX-License-Identifier: Apache-2.0
// OpenCalls: how many calls are under way, and when there are none. A call is under way while
// somebody holds its ticket. Tickets may outlive the object.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "absl/time/time.h"

namespace asynctls {

class OpenCalls {
 public:
  using Ticket = std::shared_ptr<void>;

  // Any thread.
  Ticket Enter() {
    std::lock_guard lock(state_->mu);
    ++state_->calls;
    return Ticket(nullptr, [state = state_](void*) {
      std::lock_guard lock(state->mu);
      if (--state->calls == 0) state->none.notify_all();
    });
  }

  // Until there are none, or `limit` has passed: then false.
  bool WaitUntilNone(absl::Duration limit) const {
    std::unique_lock lock(state_->mu);
    return state_->none.wait_for(
        lock, absl::ToChronoMilliseconds(limit), [this] { return state_->calls == 0; });
  }

 private:
  struct State {
    std::mutex mu;
    std::condition_variable none;
    int64_t calls = 0;  // guarded by mu
  };
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace asynctls
