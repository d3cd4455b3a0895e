// SPDX-License-Identifier: Apache-2.0
// The aliases' names and labels are an API too: this list fails when one disappears.
#include "engine/metrics/vllm_aliases.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "engine/metrics/metrics.h"
#include "tests/testing/prometheus_text.h"

namespace asynctls {
namespace {

using ::testing::ElementsAreArray;
using testing::PrometheusText;
using testing::PrometheusTextReader;

class VllmAliasesTest : public ::testing::Test {
 protected:
  VllmAliasesTest() { metrics_.SetCacheConfig(64, 1000); }

  PrometheusText Read() { return PrometheusTextReader().Read(aliases_.Collect()); }

  std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  Metrics metrics_{*registry_};
  VllmAliases aliases_{registry_, "demo"};
};

TEST_F(VllmAliasesTest, NamesAndTypes) {
  const std::map<std::string, std::string> expected = {
      {"vllm:num_requests_running", "gauge"},
      {"vllm:num_requests_waiting", "gauge"},
      {"vllm:kv_cache_usage_perc", "gauge"},
      {"vllm:cache_config_info", "gauge"},
      {"vllm:prompt_tokens_total", "counter"},
      {"vllm:generation_tokens_total", "counter"},
      {"vllm:prefix_cache_queries_total", "counter"},
      {"vllm:prefix_cache_hits_total", "counter"},
      {"vllm:request_success_total", "counter"},
      {"vllm:time_to_first_token_seconds", "histogram"},
      {"vllm:inter_token_latency_seconds", "histogram"},
      {"vllm:request_time_per_output_token_seconds", "histogram"},
      {"vllm:e2e_request_latency_seconds", "histogram"},
      {"vllm:request_queue_time_seconds", "histogram"},
      {"vllm:request_prefill_time_seconds", "histogram"},
      {"vllm:request_decode_time_seconds", "histogram"},
      {"vllm:request_inference_time_seconds", "histogram"},
      {"vllm:request_prompt_tokens", "histogram"},
      {"vllm:request_generation_tokens", "histogram"},
      {"vllm:request_params_n", "histogram"},
      {"vllm:request_params_max_tokens", "histogram"},
      {"vllm:iteration_tokens_total", "histogram"},
  };
  EXPECT_EQ(Read().types, expected);
}

TEST_F(VllmAliasesTest, ValuesAndLabels) {
  metrics_.requests_running.Set(3);
  metrics_.requests_waiting.Set(4);
  metrics_.kv_usage_ratio.Set(0.5);
  metrics_.prompt_tokens_computed.Increment(100);
  metrics_.prompt_tokens_cached.Increment(20);
  metrics_.finished(Outcome::kStop).Increment(5);
  metrics_.finished(Outcome::kAborted).Increment(1);
  metrics_.finished(Outcome::kDeadline).Increment(2);
  metrics_.finished(Outcome::kRejected).Increment(100);
  metrics_.time_to_first_token.Observe(0.3);
  metrics_.time_to_first_token.Observe(7000);
  PrometheusText text = Read();
  const std::string labels = R"({model_name="demo",engine="0"})";
  const auto success = [&](const std::string& reason) {
    return text.samples.at(
        R"(vllm:request_success_total{model_name="demo",engine="0",finished_reason=")" + reason +
        "\"}");
  };
  EXPECT_EQ(text.samples.at("vllm:num_requests_running" + labels), 3);
  EXPECT_EQ(text.samples.at("vllm:num_requests_waiting" + labels), 4);
  EXPECT_EQ(text.samples.at("vllm:kv_cache_usage_perc" + labels), 0.5);
  EXPECT_EQ(text.samples.at("vllm:prompt_tokens_total" + labels), 120);
  EXPECT_EQ(success("stop"), 5);
  EXPECT_EQ(success("abort"), 3);
  EXPECT_EQ(success("length"), 0);
  EXPECT_EQ(success("error"), 0);
  EXPECT_EQ(text.samples.at("vllm:time_to_first_token_seconds_count" + labels), 2);
  EXPECT_EQ(text.samples.at("vllm:time_to_first_token_seconds_bucket"
                            R"({model_name="demo",engine="0",le="0.5"})"),
            1);
  size_t series = 0;
  for (const auto& [name, value] : text.samples) {
    series += name.starts_with("vllm:request_success_total");
    EXPECT_NE(name.find(R"({model_name="demo",engine="0")"), std::string::npos) << name;
  }
  EXPECT_EQ(series, 4);
}

TEST_F(VllmAliasesTest, CacheConfigHasVllmsLabels) {
  EXPECT_EQ(Read().samples.count(R"(vllm:cache_config_info{model_name="demo",engine="0",)"
                                 R"(block_size="64",num_gpu_blocks="1000"})"),
            1);
}

// A scrape of both: no name is in both halves.
TEST_F(VllmAliasesTest, BesideOurOwnNames) {
  std::vector<prometheus::MetricFamily> both = registry_->Collect();
  const size_t ours = both.size();
  for (prometheus::MetricFamily& alias : aliases_.Collect()) both.push_back(std::move(alias));
  EXPECT_EQ(PrometheusTextReader().Read(both).types.size(), both.size());
  EXPECT_GT(both.size(), ours);
}

}  // namespace
}  // namespace asynctls
