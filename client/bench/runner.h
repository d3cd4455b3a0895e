// SPDX-License-Identifier: Apache-2.0
// Runner: sends a workload to a server and records what comes back. Calls use gRPC's callback API,
// so the threads are gRPC's few, the caller's (which sends) and one that measures how late a thread
// of this process gets a core, however many streams there are.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "client/bench/distribution.h"
#include "client/bench/recorder.h"
#include "client/bench/workload.h"

namespace asynctls {

struct RunOptions {
  std::string target;
  int connections = 1;  // requests take them in turn
  // Exactly one of the two: so many requests at a time, or so many sent per second (open loop: a
  // request is sent when its time has come, whatever came of the others).
  uint32_t concurrency = 0;
  double rate = 0;
  double burstiness = 1;
  // Sending ends with the first of the two.
  uint64_t num_requests = UINT64_MAX;
  absl::Duration duration = absl::InfiniteDuration();
  uint32_t warmup = 0;  // requests sent and ended before, not recorded
  absl::Duration slow_delay = absl::Milliseconds(50);  // kSlow: after each message
  absl::Duration deadline = absl::Seconds(1);          // kDeadline
  absl::Duration timeout = absl::InfiniteDuration();   // of every other call
  uint64_t seed = 0;                                   // of the arrivals
};

// What the client itself cost, from the first send to the last end.
struct RunStats {
  double wall_seconds = 0;
  double cpu_seconds = 0;       // user and system, of the whole process
  uint64_t messages = 0;        // received
  double callback_seconds = 0;  // in our own reactions, all threads together
  int threads = 0;              // the most there were
  Distribution wakeup_lag;      // a thread that asked to wake up: how much later it did
  Distribution send_lateness;   // open loop: sent after its time
};

struct LiveCounts {
  uint64_t sent = 0, ended = 0, running = 0, tokens = 0;
  double seconds = 0;
};

// Blocks until every call has ended. `on_progress`, if any, is called about ten times a second, by
// one thread. Requires: the workload's vocabulary is the server's.
RunStats RunBenchmark(const RunOptions& options,
                      const Workload& workload,
                      Recorder& recorder,
                      const std::function<void(const LiveCounts&)>& on_progress);

}  // namespace asynctls
