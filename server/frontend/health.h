// SPDX-License-Identifier: Apache-2.0
// HealthMonitor: what the server says of itself, once for every protocol.
#pragma once

#include <mutex>
#include <string>

#include "absl/time/time.h"
#include "server/frontend/frontend.h"

namespace asynctls {

struct Health {
  bool live = true;      // the process is worth keeping
  bool started = false;  // the model is there
  bool ready = false;    // requests are admitted and steps are done
  std::string reason;    // why it is not ready
};

class HealthMonitor {
 public:
  // With requests in the engine and no step done for `stall`, the server is not ready. `frontend`
  // outlives the monitor.
  HealthMonitor(Frontend& frontend, absl::Duration stall);

  // Looks at the engine; to be called every second or so.
  Health Update();
  // What the last Update found. Any thread.
  Health health() const;
  // Not ready from now on.
  void StartDraining();

 private:
  Health Look();

  Frontend& frontend_;
  const absl::Duration stall_;

  mutable std::mutex mu_;  // guards what follows
  Health health_;
  bool draining_ = false;
  int64_t seen_steps_ = 0;
  absl::Time moved_at_;  // when the engine last was idle or had done a step
};

}  // namespace asynctls
