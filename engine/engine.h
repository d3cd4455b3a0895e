// SPDX-License-Identifier: Apache-2.0
// Engine: the loop that turns requests into steps. Owns the scheduler (engine thread only) and the
// worker group.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/metrics/metrics.h"
#include "engine/scheduler/request.h"
#include "engine/scheduler/scheduler.h"
#include "engine/worker/worker_group.h"

namespace asynctls {

class Engine {
 public:
  // `workers` is initialised; `metrics` outlives the engine. Starts the engine thread.
  Engine(const SchedulerConfig& config, std::unique_ptr<WorkerGroup> workers, Metrics& metrics);
  // Cancels what is left (UNAVAILABLE), waits for the step in flight, joins the thread.
  ~Engine();

  // Any thread. Checked before anything is queued; on success the request's on_event will be
  // called with exactly one `finished`. Errors: INVALID_ARGUMENT (can never fit, bad ids),
  // ALREADY_EXISTS (live id), RESOURCE_EXHAUSTED (queue full), UNAVAILABLE (draining or dead).
  absl::Status Submit(Request request);

  // Any thread, idempotent, unknown ids ignored. `why` becomes the finish status.
  void Cancel(const std::string& id, absl::Status why);

  // Refuses new requests from now on; returns once the last one finished or `limit` passed (what
  // is left is then cancelled).
  void Drain(absl::Duration limit);

  // Numbers for status pages and tests. Any thread.
  struct Snapshot {
    int running = 0, waiting = 0;
    int64_t blocks_total = 0, blocks_used = 0, blocks_cached = 0;  // used excludes cached
    int64_t steps = 0;
    absl::Time last_progress;
    bool healthy = true;  // false after a worker failed
  };
  Snapshot snapshot() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace asynctls
