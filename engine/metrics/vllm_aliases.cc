// SPDX-License-Identifier: Apache-2.0
// The table of aliases, and how labels are translated.
#include "engine/metrics/vllm_aliases.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "prometheus/client_metric.h"
#include "prometheus/metric_family.h"

namespace asynctls {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using Label = ClientMetric::Label;

struct Alias {
  const char* ours;
  const char* theirs;
};

// Labels we have and vLLM has not are summed over; kLabels has the exceptions.
constexpr Alias kAliases[] = {
    {"asynctls_requests_running", "vllm:num_requests_running"},
    {"asynctls_requests_waiting", "vllm:num_requests_waiting"},
    {"asynctls_kv_usage_ratio", "vllm:kv_cache_usage_perc"},
    {"asynctls_cache_config_info", "vllm:cache_config_info"},
    {"asynctls_prompt_tokens_total", "vllm:prompt_tokens_total"},
    {"asynctls_generation_tokens_total", "vllm:generation_tokens_total"},
    {"asynctls_prefix_cache_queries_tokens_total", "vllm:prefix_cache_queries_total"},
    {"asynctls_prefix_cache_hits_tokens_total", "vllm:prefix_cache_hits_total"},
    {"asynctls_requests_finished_total", "vllm:request_success_total"},
    {"asynctls_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"},
    {"asynctls_inter_token_latency_seconds", "vllm:inter_token_latency_seconds"},
    {"asynctls_time_per_output_token_seconds", "vllm:request_time_per_output_token_seconds"},
    {"asynctls_e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds"},
    {"asynctls_request_queue_seconds", "vllm:request_queue_time_seconds"},
    {"asynctls_prefill_seconds", "vllm:request_prefill_time_seconds"},
    {"asynctls_decode_seconds", "vllm:request_decode_time_seconds"},
    {"asynctls_inference_seconds", "vllm:request_inference_time_seconds"},
    {"asynctls_request_prompt_tokens", "vllm:request_prompt_tokens"},
    {"asynctls_request_generation_tokens", "vllm:request_generation_tokens"},
    {"asynctls_request_params_n", "vllm:request_params_n"},
    {"asynctls_request_params_max_tokens", "vllm:request_params_max_tokens"},
    {"asynctls_iteration_tokens", "vllm:iteration_tokens_total"},
};

// Label values that are kept: our name and value -> theirs. An empty value stands for any.
struct LabelAlias {
  Label ours, theirs;
};
const LabelAlias kLabels[] = {
    {{"block_size", ""}, {"block_size", ""}},
    {{"num_blocks", ""}, {"num_gpu_blocks", ""}},
    {{"reason", "stop"}, {"finished_reason", "stop"}},
    {{"reason", "length"}, {"finished_reason", "length"}},
    {{"reason", "aborted"}, {"finished_reason", "abort"}},
    {{"reason", "deadline"}, {"finished_reason", "abort"}},
    {{"reason", "failed"}, {"finished_reason", "error"}},
};

// What vLLM does not count at all: a refused request does not get as far as its engine.
bool Counts(const ClientMetric& metric) {
  return std::find(metric.label.begin(), metric.label.end(), Label{"reason", "rejected"}) ==
         metric.label.end();
}

std::optional<Label> Translate(const Label& label) {
  for (const LabelAlias& alias : kLabels) {
    if (label.name != alias.ours.name) continue;
    if (alias.ours.value.empty()) return Label{alias.theirs.name, label.value};
    if (label.value == alias.ours.value) return alias.theirs;
  }
  return std::nullopt;
}

// Requires: at most one of them is a histogram with samples (no labelled histogram has an alias).
void Add(const ClientMetric& from, ClientMetric& to) {
  to.counter.value += from.counter.value;
  to.gauge.value += from.gauge.value;
  if (!from.histogram.bucket.empty()) to.histogram = from.histogram;
}

MetricFamily Translate(const MetricFamily& ours,
                       const std::string& name,
                       const std::string& model_name) {
  MetricFamily theirs{name, ours.help, ours.type, {}};
  for (const ClientMetric& metric : ours.metric) {
    if (!Counts(metric)) continue;
    ClientMetric alias;
    alias.label = {{"model_name", model_name}, {"engine", "0"}};
    for (const Label& label : metric.label) {
      const std::optional<Label> translated = Translate(label);
      if (translated.has_value()) alias.label.push_back(*translated);
    }
    const auto same = std::find_if(theirs.metric.begin(), theirs.metric.end(), [&](const auto& m) {
      return m.label == alias.label;
    });
    if (same == theirs.metric.end()) {
      Add(metric, alias);
      theirs.metric.push_back(std::move(alias));
    } else {
      Add(metric, *same);
    }
  }
  return theirs;
}

}  // namespace

VllmAliases::VllmAliases(std::shared_ptr<const prometheus::Collectable> source,
                         std::string model_name)
    : source_(std::move(source)), model_name_(std::move(model_name)) {}

std::vector<MetricFamily> VllmAliases::Collect() const {
  const std::vector<MetricFamily> ours = source_->Collect();
  std::vector<MetricFamily> aliases;
  for (const Alias& alias : kAliases) {
    const auto family = std::find_if(
        ours.begin(), ours.end(), [&](const MetricFamily& f) { return f.name == alias.ours; });
    if (family != ours.end()) aliases.push_back(Translate(*family, alias.theirs, model_name_));
  }
  return aliases;
}

}  // namespace asynctls
