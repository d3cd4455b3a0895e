// SPDX-License-Identifier: Apache-2.0
// Metrics: every metric of the server, by name, with its definition. A metric's name, help and
// buckets appear once, in metrics.cc; label sets are closed, so nothing a client sends can grow the
// registry. Names are an API: tests/engine/metrics/metrics_test.cc fails when one disappears.
//
// Request accounting, true whenever no request is just being moved:
//   requests_started == sum(requests_finished) + requests_running + requests_waiting
//
// A token's event is made when its step is committed; the way to the client is not in here. Each
// metric, TTFT, ITL and TPOT among them, is defined in engine/metrics/README.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace asynctls {

// How a request ended, as counted. kDeadline is an abort by its deadline, kRejected a request that
// was never accepted (Submit returned an error).
enum class Outcome { kStop, kLength, kAborted, kDeadline, kFailed, kRejected };
enum class Rejection { kInvalid, kOverloaded, kUnavailable, kDuplicate, kOther };
enum class Protocol { kGrpc, kVllm, kKserve, kOpenAi };
enum class StepKind { kPrefill, kDecode, kMixed };
enum class PriorityClass { kLow, kNormal, kHigh };  // below 0, 0, above 0

Rejection RejectionOf(const absl::Status& why);
PriorityClass PriorityClassOf(int32_t priority);

// StepResult.phases, as counted; names outside the list are counted as the last one.
inline constexpr std::array<const char*, 8> kStepPhases = {"inputs",
                                                           "attention_prefill",
                                                           "attention_decode",
                                                           "select",
                                                           "gemm",
                                                           "sample",
                                                           "device",
                                                           "other"};

// Thread-safe: prometheus-cpp's counters and gauges are atomics, its histograms lock. `registry`
// outlives this and whatever holds references from it.
struct Metrics {
  explicit Metrics(prometheus::Registry& registry);
  Metrics(const Metrics&) = delete;

  // Requests. A sequence of a request with n > 1 counts as one here.
  prometheus::Gauge& requests_running;
  prometheus::Gauge& requests_waiting;
  prometheus::Gauge& requests_max_running;
  std::array<prometheus::Gauge*, 3>
      waiting_by_priority;  // by PriorityClass; sum = requests_waiting
  prometheus::Gauge& waiting_prompt_tokens;
  prometheus::Counter& requests_started;
  std::array<prometheus::Counter*, 6> requests_finished;  // by Outcome
  prometheus::Counter& finished(Outcome outcome) {
    return *requests_finished[static_cast<size_t>(outcome)];
  }
  std::array<prometheus::Counter*, 5> requests_rejected;  // by Rejection; sum = finished(kRejected)
  // A request refused at the door with `why`: started and finished at once, and counted by reason.
  void CountRejected(const absl::Status& why);
  // What calls ask for, once per Engine::Submit that is accepted.
  prometheus::Histogram& request_params_n;
  prometheus::Histogram& request_params_max_tokens;

  // Set by the server: calls that ask for a generation, by the protocol they came through; the
  // level of server/README.md; tokens handed to a client's stream.
  std::array<prometheus::Counter*, 4> protocol_requests;  // by Protocol
  prometheus::Counter& requests_by(Protocol protocol) {
    return *protocol_requests[static_cast<size_t>(protocol)];
  }
  prometheus::Gauge& overload_level;
  prometheus::Counter& sent_tokens;

  // Logical KV blocks: used + cached + free == total. `reserved` are those of cached and free that
  // running requests may still claim. usage_ratio = (used + reserved) / total: what limits
  // admission.
  struct KvBlocks {
    prometheus::Gauge &used, &cached, &free, &reserved, &total;
  } kv_blocks;
  prometheus::Gauge& kv_usage_ratio;

  // Tokens. Of prompts: computed ones when their step is committed, cached ones when they are
  // found; generation_tokens counts those delivered. Prefix cache: prompt tokens of admitted
  // requests that may use it, and those of them that were found.
  prometheus::Counter& prompt_tokens_computed;
  prometheus::Counter& prompt_tokens_cached;
  prometheus::Counter& generation_tokens;
  prometheus::Counter& prefix_cache_queries_tokens;
  prometheus::Counter& prefix_cache_hits_tokens;

  prometheus::Histogram& time_to_first_token;
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& time_per_output_token;
  prometheus::Histogram& e2e_latency;
  prometheus::Histogram& queue_time;
  prometheus::Histogram& prefill_time;
  prometheus::Histogram& decode_time;
  prometheus::Histogram& inference_time;
  prometheus::Histogram& cancel_to_free;
  prometheus::Histogram& request_prompt_tokens;      // of every accepted request, at its end
  prometheus::Histogram& request_generation_tokens;  // likewise

  // Steps: their time, the rows in each, the pause of the ranks between two of them.
  // Phases as in StepResult.phases (rank 0).
  std::array<prometheus::Histogram*, 3> step_seconds;  // by StepKind
  prometheus::Histogram& iteration_tokens;
  prometheus::Histogram& step_rows_prefill;
  prometheus::Histogram& step_rows_decode;
  prometheus::Histogram& step_gap;
  std::array<prometheus::Counter*, kStepPhases.size()> step_phase_seconds;
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

  // Constant labels with the value 1, set once at the start.
  prometheus::Family<prometheus::Gauge>& cache_config_info;
  prometheus::Family<prometheus::Gauge>& build_info;
  prometheus::Family<prometheus::Gauge>& model_info;
  void SetCacheConfig(uint32_t block_size, uint32_t num_blocks);
  void SetBuild(const std::string& version);
  void SetModel(const std::string& name, const std::string& architecture);
};

}  // namespace asynctls
