// SPDX-License-Identifier: Apache-2.0
// Metrics: every metric of the server, by name, with its definition. A metric's name, help and
// buckets appear once, in metrics.cc; label sets are closed, so nothing a client sends can grow the
// registry. Names are an API: tests/engine/metrics/metrics_test.cc fails when one disappears.
//
// Request accounting, true whenever no request is just being moved:
//   requests_started == sum(requests_finished) + requests_running + requests_waiting
//
// Clocks (all per request, seconds):
//   e2e            Submit -> the finish event; every accepted request
//   queue          Submit -> the first plan that has a lane for it; admitted requests
//   prefill        that plan -> the first token's event (the tail's decode rows included)
//   TTFT           Submit -> the first token's event = queue + prefill; requests with >= 1 token
//   decode         the first token's event -> the finish event
//   ITL            from one token's event to the next of the same request: (tokens - 1) samples
// A token's event is made when its step is committed; the way to the client is not in here.
#pragma once

#include <array>
#include <string>

#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace asynctls {

// How a request ended, as counted. kDeadline is an abort by its deadline, kRejected a request that
// was never accepted (Submit returned an error).
enum class Outcome { kStop, kLength, kAborted, kDeadline, kFailed, kRejected };

// Thread-safe: prometheus-cpp's counters and gauges are atomics, its histograms lock. `registry`
// outlives this and whatever holds references from it.
struct Metrics {
  explicit Metrics(prometheus::Registry& registry);
  Metrics(const Metrics&) = delete;

  // Requests.
  prometheus::Gauge& requests_running;
  prometheus::Gauge& requests_waiting;
  prometheus::Counter& requests_started;
  std::array<prometheus::Counter*, 6> requests_finished;  // by Outcome
  prometheus::Counter& finished(Outcome outcome) {
    return *requests_finished[static_cast<size_t>(outcome)];
  }
  // A request refused at the door: started and finished at once.
  void CountRejected();

  // Logical KV blocks: used + cached + free == total. `reserved` are those of cached and free that
  // running requests may still claim. usage_ratio = (used + reserved) / total: what limits
  // admission.
  struct KvBlocks {
    prometheus::Gauge &used, &cached, &free, &reserved, &total;
  } kv_blocks;
  prometheus::Gauge& kv_usage_ratio;

  // Tokens. prompt_tokens counts those computed (hits excluded), when their step is committed;
  // generation_tokens those delivered. Prefix cache: prompt tokens of admitted requests, and those
  // of them that were found.
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& generation_tokens;
  prometheus::Counter& prefix_cache_queries_tokens;
  prometheus::Counter& prefix_cache_hits_tokens;

  prometheus::Histogram& time_to_first_token;
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& e2e_latency;
  prometheus::Histogram& queue_time;
  prometheus::Histogram& prefill_time;
  prometheus::Histogram& decode_time;
  prometheus::Histogram& request_prompt_tokens;      // of every accepted request, at its end
  prometheus::Histogram& request_generation_tokens;  // likewise

  // Steps: from plan to commit, and the rows in each. Phases as in StepResult.phases (rank 0);
  // names outside the list are counted as "other".
  prometheus::Histogram& step_seconds;
  prometheus::Histogram& step_rows_prefill;
  prometheus::Histogram& step_rows_decode;
  std::array<prometheus::Counter*, 7> step_phase_seconds;
  void AddStepPhase(const std::string& name, double seconds);

  // What decode attention read (all layers, KV heads and ranks) beside what dense would have read,
  // by the mode of the request.
  struct KvReads {
    prometheus::Counter *blocks, *tokens, *bytes, *dense_bytes;
  };
  std::array<KvReads, 3> kv_reads;  // dense, exact, lagged
  prometheus::Counter& selection_nan_heads;

  // Seconds of start-up by phase, set once from InitReply.
  prometheus::Family<prometheus::Gauge>& startup_seconds;
  void SetStartup(const std::string& phase, double seconds);
};

}  // namespace asynctls
