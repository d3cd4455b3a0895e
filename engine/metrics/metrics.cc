// SPDX-License-Identifier: Apache-2.0
// Names, help texts and buckets of all metrics.
#include "engine/metrics/metrics.h"

#include <cstddef>

namespace asynctls {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Registry;
using Buckets = Histogram::BucketBoundaries;

// From a millisecond to what a 128k prompt in a long queue may take.
const Buckets kFirstToken = {.001, .005, .01, .025, .05, .1,  .25, .5,  1,    2.5,
                             5,    10,   20,  40,   80,  160, 320, 640, 1280, 2560};
const Buckets kBetweenTokens = {.001, .0025, .005, .01, .015, .02, .03, .04, .05, .075, .1,
                                .15,  .2,    .3,   .4,  .5,   .75, 1,   2.5, 5,   10};
const Buckets kRequest = {.01, .05, .1, .3, .5, .8,  1,   1.5, 2,   2.5,  5,    10,  15,
                          20,  30,  40, 50, 60, 120, 240, 480, 960, 1920, 3840, 7680};
const Buckets kStep = {.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30};
const Buckets kTokens = {1,
                         2,
                         5,
                         10,
                         20,
                         50,
                         100,
                         200,
                         500,
                         1000,
                         2000,
                         5000,
                         10000,
                         20000,
                         50000,
                         100000,
                         200000,
                         500000};
const Buckets kRows = {0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};

const Buckets kCancelToFree = {.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30};
const Buckets kStepGap = {
    .00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1};
const Buckets kSequences = {1, 2, 3, 4, 6, 8, 12, 16};

constexpr std::array<const char*, 6> kOutcomes = {
    "stop", "length", "aborted", "deadline", "failed", "rejected"};
constexpr std::array<const char*, 5> kRejections = {
    "invalid", "overloaded", "unavailable", "duplicate", "other"};
constexpr std::array<const char*, 4> kProtocols = {"grpc", "vllm", "kserve", "openai"};
constexpr std::array<const char*, 3> kStepKinds = {"prefill", "decode", "mixed"};
constexpr std::array<const char*, 3> kPriorities = {"low", "normal", "high"};
constexpr std::array<const char*, 3> kModes = {"dense", "exact", "lagged"};

Family<Gauge>& Gauges(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}

Family<Counter>& Counters(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

Gauge& OneGauge(Registry& registry, const char* name, const char* help) {
  return Gauges(registry, name, help).Add({});
}

Counter& OneCounter(Registry& registry, const char* name, const char* help) {
  return Counters(registry, name, help).Add({});
}

Family<Histogram>& Histograms(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}

Histogram& OneHistogram(Registry& registry,
                        const char* name,
                        const char* help,
                        const Buckets& buckets) {
  return Histograms(registry, name, help).Add({}, buckets);
}

Histogram& StepRows(Registry& registry, const char* kind) {
  return Histograms(registry, "asynctls_step_rows", "Rows of a step, by kind of work")
      .Add({{"kind", kind}}, kRows);
}

// One metric of the family for each value of the label.
template <class T, size_t N, class... Args>
std::array<T*, N> ByLabel(Family<T>& family,
                          const char* label,
                          const std::array<const char*, N>& values,
                          const Args&... args) {
  std::array<T*, N> metrics;
  for (size_t i = 0; i < N; ++i) metrics[i] = &family.Add({{label, values[i]}}, args...);
  return metrics;
}

Counter& PromptTokens(Registry& registry, const char* source) {
  return Counters(registry,
                  "asynctls_prompt_tokens_total",
                  "Prompt tokens computed by steps, and those found in the prefix cache instead")
      .Add({{"source", source}});
}

Metrics::KvBlocks MakeKvBlocks(Registry& registry) {
  auto& family = Gauges(registry,
                        "asynctls_kv_blocks",
                        "Logical KV blocks; used + cached + free = total, reserved is the part of "
                        "cached and free that running requests may still claim");
  return {.used = family.Add({{"state", "used"}}),
          .cached = family.Add({{"state", "cached"}}),
          .free = family.Add({{"state", "free"}}),
          .reserved = family.Add({{"state", "reserved"}}),
          .total = family.Add({{"state", "total"}})};
}

std::array<Metrics::KvReads, 3> MakeKvReads(Registry& registry) {
  const auto blocks = ByLabel(Counters(registry,
                                       "asynctls_kv_read_blocks_total",
                                       "KV blocks that held a token attended by a decode row"),
                              "mode",
                              kModes);
  const auto tokens = ByLabel(Counters(registry,
                                       "asynctls_kv_read_tokens_total",
                                       "Token rows of K and V attended by decode rows"),
                              "mode",
                              kModes);
  const auto bytes = ByLabel(Counters(registry,
                                      "asynctls_kv_read_bytes_total",
                                      "Bytes of K, V and key codes read by decode rows"),
                             "mode",
                             kModes);
  const auto dense = ByLabel(Counters(registry,
                                      "asynctls_kv_dense_bytes_total",
                                      "Bytes dense attention would have read for the same rows"),
                             "mode",
                             kModes);
  std::array<Metrics::KvReads, 3> reads;
  for (size_t i = 0; i < reads.size(); ++i) reads[i] = {blocks[i], tokens[i], bytes[i], dense[i]};
  return reads;
}

}  // namespace

Metrics::Metrics(Registry& r)
    : requests_running(OneGauge(r, "asynctls_requests_running", "Requests that hold a lane")),
      requests_waiting(
          OneGauge(r, "asynctls_requests_waiting", "Accepted requests without a lane")),
      requests_max_running(
          OneGauge(r, "asynctls_requests_max_running", "Requests that can run at once: lanes")),
      waiting_by_priority(ByLabel(Gauges(r,
                                         "asynctls_requests_waiting_by_priority",
                                         "Waiting requests with a priority below 0, 0, above 0"),
                                  "priority",
                                  kPriorities)),
      waiting_prompt_tokens(
          OneGauge(r, "asynctls_waiting_prompt_tokens", "Prompt tokens of the waiting requests")),
      requests_started(OneCounter(
          r, "asynctls_requests_started_total", "Requests submitted, rejected included")),
      requests_finished(
          ByLabel(Counters(r, "asynctls_requests_finished_total", "Requests ended, by reason"),
                  "reason",
                  kOutcomes)),
      requests_rejected(ByLabel(
          Counters(
              r, "asynctls_requests_rejected_total", "Requests refused at the door, by reason"),
          "reason",
          kRejections)),
      request_params_n(OneHistogram(
          r, "asynctls_request_params_n", "Sequences asked for, per accepted call", kSequences)),
      request_params_max_tokens(OneHistogram(
          r, "asynctls_request_params_max_tokens", "max_tokens, per accepted call", kTokens)),
      protocol_requests(
          ByLabel(Counters(r,
                           "asynctls_protocol_requests_total",
                           "Calls that ask for a generation, by the protocol they came through"),
                  "protocol",
                  kProtocols)),
      overload_level(OneGauge(
          r, "asynctls_overload_level", "What the server still does for new requests; 0 = all")),
      sent_tokens(
          OneCounter(r, "asynctls_sent_tokens_total", "Tokens handed to a client's stream")),
      kv_blocks(MakeKvBlocks(r)),
      kv_usage_ratio(OneGauge(r,
                              "asynctls_kv_usage_ratio",
                              "(used + reserved) / total blocks: what limits admission, 0 to 1")),
      prompt_tokens_computed(PromptTokens(r, "computed")),
      prompt_tokens_cached(PromptTokens(r, "cached")),
      generation_tokens(
          OneCounter(r, "asynctls_generation_tokens_total", "Tokens generated and delivered")),
      prefix_cache_queries_tokens(
          OneCounter(r,
                     "asynctls_prefix_cache_queries_tokens_total",
                     "Prompt tokens of admitted requests that may use the prefix cache")),
      prefix_cache_hits_tokens(OneCounter(
          r, "asynctls_prefix_cache_hits_tokens_total", "Prompt tokens found in the prefix cache")),
      time_to_first_token(OneHistogram(
          r, "asynctls_time_to_first_token_seconds", "Submit to the first token", kFirstToken)),
      inter_token_latency(OneHistogram(r,
                                       "asynctls_inter_token_latency_seconds",
                                       "From one token to the next of a request",
                                       kBetweenTokens)),
      time_per_output_token(OneHistogram(r,
                                         "asynctls_time_per_output_token_seconds",
                                         "Mean time between the tokens of a request",
                                         kBetweenTokens)),
      e2e_latency(OneHistogram(r,
                               "asynctls_e2e_request_latency_seconds",
                               "Submit to finish of accepted requests",
                               kRequest)),
      queue_time(
          OneHistogram(r, "asynctls_request_queue_seconds", "Submit to admission", kFirstToken)),
      prefill_time(
          OneHistogram(r, "asynctls_prefill_seconds", "Admission to the first token", kFirstToken)),
      decode_time(
          OneHistogram(r, "asynctls_decode_seconds", "The first token to finish", kRequest)),
      inference_time(
          OneHistogram(r, "asynctls_inference_seconds", "Admission to finish", kRequest)),
      cancel_to_free(OneHistogram(r,
                                  "asynctls_cancel_to_free_seconds",
                                  "Cancel or deadline to the return of lane and blocks",
                                  kCancelToFree)),
      request_prompt_tokens(OneHistogram(
          r, "asynctls_request_prompt_tokens", "Prompt length of accepted requests", kTokens)),
      request_generation_tokens(OneHistogram(
          r, "asynctls_request_generation_tokens", "Reply length of accepted requests", kTokens)),
      step_seconds(
          ByLabel(Histograms(r,
                             "asynctls_step_seconds",
                             "Plan, or the last commit, to commit of a step, by what it works on"),
                  "kind",
                  kStepKinds,
                  kStep)),
      iteration_tokens(OneHistogram(r, "asynctls_iteration_tokens", "Rows of a step", kRows)),
      step_rows_prefill(StepRows(r, "prefill")),
      step_rows_decode(StepRows(r, "decode")),
      step_gap(OneHistogram(r,
                            "asynctls_step_gap_seconds",
                            "Idle time of the ranks between two steps, with requests pending",
                            kStepGap)),
      step_phase_seconds(ByLabel(
          Counters(r, "asynctls_step_phase_seconds_total", "Time of steps by phase, rank 0"),
          "phase",
          kStepPhases)),
      kv_reads(MakeKvReads(r)),
      selection_nan_heads(OneCounter(r,
                                     "asynctls_selection_nan_heads_total",
                                     "Query heads left out of a selection: non-finite scores")),
      startup_seconds(
          Gauges(r, "asynctls_startup_seconds", "Seconds each phase of the start took")),
      cache_config_info(Gauges(r, "asynctls_cache_config_info", "The KV cache's shape; always 1")),
      build_info(Gauges(r, "asynctls_build_info", "The server's version; always 1")),
      model_info(Gauges(r, "asynctls_model_info", "The model served; always 1")) {}

Rejection RejectionOf(const absl::Status& why) {
  if (absl::IsInvalidArgument(why) || absl::IsOutOfRange(why) || absl::IsUnimplemented(why) ||
      absl::IsNotFound(why)) {
    return Rejection::kInvalid;
  }
  if (absl::IsResourceExhausted(why)) return Rejection::kOverloaded;
  if (absl::IsUnavailable(why)) return Rejection::kUnavailable;
  return absl::IsAlreadyExists(why) ? Rejection::kDuplicate : Rejection::kOther;
}

PriorityClass PriorityClassOf(int32_t priority) {
  if (priority == 0) return PriorityClass::kNormal;
  return priority < 0 ? PriorityClass::kLow : PriorityClass::kHigh;
}

void Metrics::CountRejected(const absl::Status& why) {
  requests_started.Increment();
  finished(Outcome::kRejected).Increment();
  requests_rejected[static_cast<size_t>(RejectionOf(why))]->Increment();
}

void Metrics::AddStepPhase(const std::string& name, double seconds) {
  size_t i = 0;
  while (i + 1 < kStepPhases.size() && name != kStepPhases[i]) ++i;
  step_phase_seconds[i]->Increment(seconds);
}

void Metrics::SetStartup(const std::string& phase, double seconds) {
  startup_seconds.Add({{"phase", phase}}).Set(seconds);
}

void Metrics::SetCacheConfig(uint32_t block_size, uint32_t num_blocks) {
  cache_config_info
      .Add({{"block_size", std::to_string(block_size)}, {"num_blocks", std::to_string(num_blocks)}})
      .Set(1);
}

void Metrics::SetBuild(const std::string& version) {
  build_info.Add({{"version", version}}).Set(1);
}

void Metrics::SetModel(const std::string& name, const std::string& architecture) {
  model_info.Add({{"model_name", name}, {"architecture", architecture}}).Set(1);
}

}  // namespace asynctls
