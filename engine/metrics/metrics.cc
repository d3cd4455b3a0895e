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

constexpr std::array<const char*, 6> kOutcomes = {
    "stop", "length", "aborted", "deadline", "failed", "rejected"};
constexpr std::array<const char*, 7> kPhases = {
    "inputs", "attention_prefill", "attention_decode", "select", "gemm", "sample", "other"};
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

template <size_t N>
std::array<Counter*, N> ByLabel(Family<Counter>& family,
                                const char* label,
                                const std::array<const char*, N>& values) {
  std::array<Counter*, N> counters;
  for (size_t i = 0; i < N; ++i) counters[i] = &family.Add({{label, values[i]}});
  return counters;
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
      requests_started(OneCounter(
          r, "asynctls_requests_started_total", "Requests submitted, rejected included")),
      requests_finished(
          ByLabel(Counters(r, "asynctls_requests_finished_total", "Requests ended, by reason"),
                  "reason",
                  kOutcomes)),
      kv_blocks(MakeKvBlocks(r)),
      kv_usage_ratio(OneGauge(r,
                              "asynctls_kv_usage_ratio",
                              "(used + reserved) / total blocks: what limits admission, 0 to 1")),
      prompt_tokens(OneCounter(
          r, "asynctls_prompt_tokens_total", "Prompt tokens computed (prefix hits excluded)")),
      generation_tokens(
          OneCounter(r, "asynctls_generation_tokens_total", "Tokens generated and delivered")),
      prefix_cache_queries_tokens(OneCounter(
          r, "asynctls_prefix_cache_queries_tokens_total", "Prompt tokens of admitted requests")),
      prefix_cache_hits_tokens(OneCounter(
          r, "asynctls_prefix_cache_hits_tokens_total", "Prompt tokens found in the prefix cache")),
      time_to_first_token(OneHistogram(
          r, "asynctls_time_to_first_token_seconds", "Submit to the first token", kFirstToken)),
      inter_token_latency(OneHistogram(r,
                                       "asynctls_inter_token_latency_seconds",
                                       "From one token to the next of a request",
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
      request_prompt_tokens(OneHistogram(
          r, "asynctls_request_prompt_tokens", "Prompt length of accepted requests", kTokens)),
      request_generation_tokens(OneHistogram(
          r, "asynctls_request_generation_tokens", "Reply length of accepted requests", kTokens)),
      step_seconds(OneHistogram(r, "asynctls_step_seconds", "Plan to commit of a step", kStep)),
      step_rows_prefill(StepRows(r, "prefill")),
      step_rows_decode(StepRows(r, "decode")),
      step_phase_seconds(ByLabel(
          Counters(r, "asynctls_step_phase_seconds_total", "Time of steps by phase, rank 0"),
          "phase",
          kPhases)),
      kv_reads(MakeKvReads(r)),
      selection_nan_heads(OneCounter(r,
                                     "asynctls_selection_nan_heads_total",
                                     "Query heads left out of a selection: non-finite scores")),
      startup_seconds(
          Gauges(r, "asynctls_startup_seconds", "Seconds each phase of the start took")) {}

void Metrics::CountRejected() {
  requests_started.Increment();
  finished(Outcome::kRejected).Increment();
}

void Metrics::AddStepPhase(const std::string& name, double seconds) {
  size_t i = 0;
  while (i + 1 < kPhases.size() && name != kPhases[i]) ++i;
  step_phase_seconds[i]->Increment(seconds);
}

void Metrics::SetStartup(const std::string& phase, double seconds) {
  startup_seconds.Add({{"phase", phase}}).Set(seconds);
}

}  // namespace asynctls
