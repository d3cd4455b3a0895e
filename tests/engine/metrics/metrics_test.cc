// SPDX-License-Identifier: Apache-2.0
// Metric names are an API: this list fails when one disappears or changes its labels. Add to it;
// removing a line is a breaking change.
#include "engine/metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/model/step_clock.h"
#include "tests/testing/prometheus_text.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;

// Name -> label values.
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

// What is set at the start of a server.
void SetOnce(Metrics& metrics) {
  metrics.SetStartup("weights", 1.5);
  metrics.SetCacheConfig(64, 1000);
  metrics.SetBuild("1.2");
  metrics.SetModel("demo", "DemoForCausalLM");
}

// Said in two layers that do not know each other.
TEST(StepPhasesTest, AreThoseOfTheStepClock) {
  const std::vector<std::string> ours(kStepPhases.begin(), kStepPhases.end());
  const std::vector<std::string> clock(kStepPhaseNames.begin(), kStepPhaseNames.end());
  EXPECT_EQ(ours, clock);
}

TEST(Metrics, NamesAndLabels) {
  prometheus::Registry registry;
  Metrics metrics(registry);
  SetOnce(metrics);
  const std::set<std::string> modes = {"mode=dense", "mode=exact", "mode=lagged"};
  const std::map<std::string, std::set<std::string>> expected = {
      {"asynctls_requests_running", {}},
      {"asynctls_requests_waiting", {}},
      {"asynctls_requests_max_running", {}},
      {"asynctls_requests_waiting_by_priority",
       {"priority=low", "priority=normal", "priority=high"}},
      {"asynctls_waiting_prompt_tokens", {}},
      {"asynctls_requests_started_total", {}},
      {"asynctls_requests_rejected_total",
       {"reason=invalid",
        "reason=overloaded",
        "reason=unavailable",
        "reason=duplicate",
        "reason=other"}},
      {"asynctls_request_params_n", {}},
      {"asynctls_request_params_max_tokens", {}},
      {"asynctls_protocol_requests_total",
       {"protocol=grpc", "protocol=vllm", "protocol=kserve", "protocol=openai"}},
      {"asynctls_overload_level", {}},
      {"asynctls_sent_tokens_total", {}},
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
      {"asynctls_prompt_tokens_total", {"source=computed", "source=cached"}},
      {"asynctls_generation_tokens_total", {}},
      {"asynctls_prefix_cache_queries_tokens_total", {}},
      {"asynctls_prefix_cache_hits_tokens_total", {}},
      {"asynctls_time_to_first_token_seconds", {}},
      {"asynctls_inter_token_latency_seconds", {}},
      {"asynctls_time_per_output_token_seconds", {}},
      {"asynctls_e2e_request_latency_seconds", {}},
      {"asynctls_request_queue_seconds", {}},
      {"asynctls_prefill_seconds", {}},
      {"asynctls_decode_seconds", {}},
      {"asynctls_inference_seconds", {}},
      {"asynctls_cancel_to_free_seconds", {}},
      {"asynctls_request_prompt_tokens", {}},
      {"asynctls_request_generation_tokens", {}},
      {"asynctls_step_seconds", {"kind=prefill", "kind=decode", "kind=mixed"}},
      {"asynctls_iteration_tokens", {}},
      {"asynctls_step_gap_seconds", {}},
      {"asynctls_step_rows", {"kind=prefill", "kind=decode"}},
      {"asynctls_step_phase_seconds_total",
       {"phase=inputs",
        "phase=attention_prefill",
        "phase=device",
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
      {"asynctls_cache_config_info", {"block_size=64", "num_blocks=1000"}},
      {"asynctls_build_info", {"version=1.2"}},
      {"asynctls_model_info", {"model_name=demo", "architecture=DemoForCausalLM"}},
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
                          std::pair("asynctls_requests_rejected_total unavailable", 1),
                          std::pair("asynctls_requests_started_total", 1),
                          std::pair("asynctls_step_phase_seconds_total gemm", 2),
                          std::pair("asynctls_step_phase_seconds_total other", 3)));
}

TEST(Metrics, RejectionsByReason) {
  const std::pair<absl::Status, Rejection> cases[] = {
      {absl::InvalidArgumentError(""), Rejection::kInvalid},
      {absl::NotFoundError(""), Rejection::kInvalid},
      {absl::UnimplementedError(""), Rejection::kInvalid},
      {absl::OutOfRangeError(""), Rejection::kInvalid},
      {absl::ResourceExhaustedError(""), Rejection::kOverloaded},
      {absl::UnavailableError(""), Rejection::kUnavailable},
      {absl::AlreadyExistsError(""), Rejection::kDuplicate},
      {absl::CancelledError(""), Rejection::kOther},
      {absl::InternalError(""), Rejection::kOther}};
  prometheus::Registry registry;
  Metrics metrics(registry);
  for (const auto& [status, reason] : cases) {
    EXPECT_EQ(RejectionOf(status), reason) << status;
    metrics.CountRejected(status);
  }
  double sum = 0;
  for (const auto* counter : metrics.requests_rejected) sum += counter->Value();
  EXPECT_EQ(sum, metrics.finished(Outcome::kRejected).Value());
  EXPECT_EQ(sum, metrics.requests_started.Value());
}

TEST(Metrics, PriorityClasses) {
  EXPECT_EQ(PriorityClassOf(-1), PriorityClass::kLow);
  EXPECT_EQ(PriorityClassOf(0), PriorityClass::kNormal);
  EXPECT_EQ(PriorityClassOf(1), PriorityClass::kHigh);
}

TEST(Metrics, TheTextIsValid) {
  prometheus::Registry registry;
  Metrics metrics(registry);
  SetOnce(metrics);
  for (const double value : {0.0, 0.0003, 0.02, 1.0, 17.0, 1e9}) {
    metrics.time_to_first_token.Observe(value);
    metrics.step_rows_decode.Observe(value);
    metrics.step_gap.Observe(value);
  }
  const testing::PrometheusText text = testing::PrometheusTextReader().Read(registry.Collect());
  EXPECT_EQ(text.types.size(), Collect(registry).size());
  EXPECT_EQ(text.samples.at("asynctls_time_to_first_token_seconds_bucket{le=\"0.025\"}"), 3);
  EXPECT_EQ(text.samples.at("asynctls_time_to_first_token_seconds_count"), 6);
}

// Of a line of a table, without the blanks around them.
std::vector<std::string> Cells(const std::string& line) {
  std::vector<std::string> cells;
  for (size_t at = 1, bar; (bar = line.find('|', at)) != std::string::npos; at = bar + 1) {
    const size_t first = std::min(line.find_first_not_of(' ', at), bar);
    const size_t last = std::max(line.find_last_not_of(' ', bar - 1) + 1, first);
    cells.push_back(line.substr(first, last - first));
  }
  return cells;
}

// The README's table has exactly the names, types and labels of the registry.
TEST(Metrics, ReadmeAgrees) {
  prometheus::Registry registry;
  Metrics metrics(registry);
  SetOnce(metrics);
  const testing::PrometheusText text = testing::PrometheusTextReader().Read(registry.Collect());
  std::ifstream readme(ASYNCTLS_SOURCE_DIR "/engine/metrics/README.md");
  ASSERT_TRUE(readme.is_open());
  std::map<std::string, std::string> types, labels;
  for (std::string line; std::getline(readme, line);) {
    if (line.rfind("| `asynctls_", 0) != 0) continue;
    const std::vector<std::string> cells = Cells(line);  // | `name` | type | labels | definition |
    ASSERT_EQ(cells.size(), 4u) << line;
    const std::string name = cells[0].substr(1, cells[0].size() - 2);
    EXPECT_TRUE(types.emplace(name, cells[1]).second) << "twice: " << line;
    EXPECT_FALSE(cells[3].empty()) << line;
    labels[name] = cells[2];
  }
  EXPECT_EQ(types, text.types);
  for (const auto& [name, values] : Collect(registry)) {
    EXPECT_EQ(values.empty(), labels[name].empty()) << name;
    for (const std::string& value : values) {
      const std::string label = value.substr(0, value.find('='));
      EXPECT_NE(labels[name].find("`" + label + "`"), std::string::npos) << name << ": " << label;
    }
  }
}

TEST(Metrics, TwoRegistriesAreIndependent) {
  prometheus::Registry one, two;
  Metrics first(one), second(two);
  first.requests_running.Set(3);
  EXPECT_EQ(second.requests_running.Value(), 0);
}

}  // namespace
}  // namespace asynctls
