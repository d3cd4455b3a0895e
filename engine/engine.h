// SPDX-License-Identifier: Apache-2.0
// Engine: the loop that turns requests into steps. Owns the scheduler (engine thread only) and the
// worker group.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/metrics/metrics.h"
#include "engine/scheduler/request.h"
#include "engine/scheduler/request_status.h"
#include "engine/scheduler/scheduler.h"
#include "engine/worker/worker_group.h"

namespace asynctls {

class Engine {
 public:
  // `workers` is initialised; `metrics` outlives the engine. Starts the engine thread.
  Engine(const SchedulerConfig& config, std::unique_ptr<WorkerGroup> workers, Metrics& metrics);
  // Cancels what is left (UNAVAILABLE), waits for the steps in flight, joins the thread.
  ~Engine();

  // Any thread. Takes the sequences of one ask, all or none. Checked before anything is queued; on
  // success each one's on_event will be called with exactly one `finished`. Requires: at least one;
  // `follows` is empty or the id of an earlier one in `requests`. Errors: INVALID_ARGUMENT (can
  // never fit, bad ids), ALREADY_EXISTS (live id), RESOURCE_EXHAUSTED (queue full), UNAVAILABLE
  // (draining or dead). One refusal counts as one rejected request.
  absl::Status Submit(std::vector<Request> requests);
  absl::Status Submit(Request request);  // of one

  // Any thread, idempotent, unknown ids ignored. `why` becomes the finish status, with kAborted; OK
  // means that the caller has seen what ends the reply (a stop string): the finish is kStop.
  void Cancel(const std::string& id, absl::Status why);

  // Refuses new requests from now on; returns once the last one finished or `limit` passed (what
  // is left is then cancelled).
  void Drain(absl::Duration limit);

  // Numbers for status pages, routers and tests. Any thread; no cost to the engine thread.
  struct Snapshot {
    int running = 0, waiting = 0;
    int max_running = 0;  // lanes
    uint64_t waiting_prompt_tokens = 0;
    // used excludes cached; reserved is the part of the rest that running requests may still claim.
    int64_t blocks_total = 0, blocks_used = 0, blocks_cached = 0, blocks_reserved = 0;
    int64_t steps = 0;
    absl::Time last_progress;
    bool healthy = true;  // false after a worker failed
    // Totals since the start. Prompt tokens: computed by steps; those of admitted requests that may
    // use the prefix cache, and what of these was found in it.
    uint64_t prompt_tokens_computed = 0, generation_tokens = 0;
    uint64_t prefix_query_tokens = 0, prefix_hit_tokens = 0;
    std::array<double, kStepPhases.size()> step_phase_seconds{};  // by kStepPhases
  };
  Snapshot snapshot() const;

  // Makes Requests() fresh for `duration` from now: the engine thread copies what is live after
  // steps, at most five times a second, and asks the ranks for block heat as often. Any thread;
  // call it again while somebody looks (an idle engine copies at each call).
  void Watch(absl::Duration duration);

  // The last copy. Any thread; never null. As old as its `as_of` says when nobody watches.
  std::shared_ptr<const RequestTable> Requests() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace asynctls
