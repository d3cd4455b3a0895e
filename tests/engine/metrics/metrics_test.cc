// SPDX-License-Identifier: Apache-2.0
// Metric names are an API: this list fails when one disappears or changes its labels. Add to it;
// removing a line is a breaking change.
#include "engine/metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

namespace asynctls {
namespace {

using ::testing::ElementsAre;

// Name -> label values (all our metrics have at most one label).
std::map<std::string, std::set<std::string>> Collect(const prometheus::Registry& registry) {
  std::map<std::string, std::set<std::string>> metrics;
  for (const auto& family : registry.Collect()) {
    EXPECT_FALSE(family.help.empty()) << family.name;
    for (const auto& metric : family.metric) {
      auto& labels = metrics[family.name];
      for (const auto& label : metric.label) labels.insert(label.name + "=" + label.value);
    }
  }
  return metrics;
}

TEST(Metrics, NamesAndLabels) {
  prometheus::Registry registry;
  Metrics metrics(registry);
  metrics.SetStartup("weights", 1.5);
  const std::set<std::string> modes = {"mode=dense", "mode=exact", "mode=lagged"};
  const std::map<std::string, std::set<std::string>> expected = {
      {"asynctls_requests_running", {}},
      {"asynctls_requests_waiting", {}},
      {"asynctls_requests_started_total", {}},
      {"asynctls_requests_finished_total",
       {"reason=stop",
        "reason=length",
        "reason=aborted",
        "reason=deadline",
        "reason=failed",
        "reason=rejected"}},
      {"asynctls_kv_blocks",
       {"state=used", "state=cached", "state=free", "state=reserved", "state=total"}},
      {"asynctls_kv_usage_ratio", {}},
      {"asynctls_prompt_tokens_total", {}},
      {"asynctls_generation_tokens_total", {}},
      {"asynctls_prefix_cache_queries_tokens_total", {}},
      {"asynctls_prefix_cache_hits_tokens_total", {}},
      {"asynctls_time_to_first_token_seconds", {}},
      {"asynctls_inter_token_latency_seconds", {}},
      {"asynctls_e2e_request_latency_seconds", {}},
      {"asynctls_request_queue_seconds", {}},
      {"asynctls_prefill_seconds", {}},
      {"asynctls_decode_seconds", {}},
      {"asynctls_request_prompt_tokens", {}},
      {"asynctls_request_generation_tokens", {}},
      {"asynctls_step_seconds", {}},
      {"asynctls_step_rows", {"kind=prefill", "kind=decode"}},
      {"asynctls_step_phase_seconds_total",
       {"phase=inputs",
        "phase=attention_prefill",
        "phase=attention_decode",
        "phase=select",
        "phase=gemm",
        "phase=sample",
        "phase=other"}},
      {"asynctls_kv_read_blocks_total", modes},
      {"asynctls_kv_read_tokens_total", modes},
      {"asynctls_kv_read_bytes_total", modes},
      {"asynctls_kv_dense_bytes_total", modes},
      {"asynctls_selection_nan_heads_total", {}},
      {"asynctls_startup_seconds", {"phase=weights"}},
  };
  EXPECT_EQ(Collect(registry), expected);
}

TEST(Metrics, ReferencesPointAtTheirNames) {
  prometheus::Registry registry;
  Metrics metrics(registry);
  metrics.finished(Outcome::kDeadline).Increment();
  metrics.CountRejected(absl::UnavailableError(""));
  metrics.AddStepPhase("gemm", 2);
  metrics.AddStepPhase("a name nobody knows", 3);
  metrics.kv_reads[2].dense_bytes->Increment(5);
  std::map<std::string, double> values;
  for (const auto& family : registry.Collect()) {
    for (const auto& metric : family.metric) {
      if (metric.counter.value == 0) continue;
      std::string name = family.name;
      for (const auto& label : metric.label) name += " " + label.value;
      values[name] = metric.counter.value;
    }
  }
  EXPECT_THAT(values,
              ElementsAre(std::pair("asynctls_kv_dense_bytes_total lagged", 5),
                          std::pair("asynctls_requests_finished_total deadline", 1),
                          std::pair("asynctls_requests_finished_total rejected", 1),
                          std::pair("asynctls_requests_started_total", 1),
                          std::pair("asynctls_step_phase_seconds_total gemm", 2),
                          std::pair("asynctls_step_phase_seconds_total other", 3)));
}

TEST(Metrics, TwoRegistriesAreIndependent) {
  prometheus::Registry one, two;
  Metrics first(one), second(two);
  first.requests_running.Set(3);
  EXPECT_EQ(second.requests_running.Value(), 0);
}

}  // namespace
}  // namespace asynctls
