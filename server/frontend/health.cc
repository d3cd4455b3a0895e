// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/health.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace asynctls {

HealthMonitor::HealthMonitor(Frontend& frontend, absl::Duration stall)
    : frontend_(frontend), stall_(stall), moved_at_(absl::Now()) {
  Update();
}

Health HealthMonitor::Update() {
  std::lock_guard lock(mu_);
  return health_ = Look();
}

Health HealthMonitor::health() const {
  std::lock_guard lock(mu_);
  return health_;
}

void HealthMonitor::StartDraining() {
  std::lock_guard lock(mu_);
  draining_ = true;
}

Health HealthMonitor::Look() {
  Health health;
  const auto serving = frontend_.serving();
  health.started = serving.ok();
  if (!health.started) {
    health.reason = std::string(serving.status().message());
    return health;
  }
  const Engine::Snapshot now = (*serving)->engine.snapshot();
  const bool busy = now.running + now.waiting > 0;
  if (!busy || now.steps != seen_steps_) moved_at_ = absl::Now();
  seen_steps_ = now.steps;
  health.live = now.healthy;
  if (!now.healthy) {
    health.reason = "the workers have failed";
  } else if (draining_) {
    health.reason = "the server is draining";
  } else if (absl::Now() - moved_at_ > stall_) {
    health.reason = absl::StrCat("no step was done for ", absl::FormatDuration(stall_));
  }
  health.ready = health.reason.empty();
  return health;
}

}  // namespace asynctls
