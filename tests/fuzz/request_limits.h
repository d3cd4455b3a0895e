// SPDX-License-Identifier: Apache-2.0
// What the request fuzzers hold requests against, and what must be true of one that is accepted.
#pragma once

#include <cmath>
#include <vector>

#include "engine/base/check.h"
#include "server/frontend/request_checks.h"

namespace asynctls {

inline const ServingLimits& FuzzLimits() {
  static const ServingLimits* limits = [] {
    auto* out = new ServingLimits;
    out->model.set_name("demo");
    out->model.set_vocab_size(2048);
    out->model.add_eos_token_ids(2);
    out->vocab = 2000;
    out->sparse.set_mode(v1::ATTENTION_MODE_EXACT);
    out->sparse.set_selector(v1::SELECTOR_CODE);
    out->sparse.set_budget(1024);
    out->sparse.set_blocks(64);
    out->max_positions = 4096;
    out->max_budget = 4096;
    return out;
  }();
  return *limits;
}

// Resolves `request` as the front end does, and checks every bound the engine relies on.
inline void CheckResolved(const v1::GenerateRequest& request) {
  auto resolved = ResolveRequest(request, FuzzLimits());
  if (!resolved.ok()) {
    ASYNCTLS_CHECK(!resolved.status().message().empty());
    ASYNCTLS_CHECK(resolved.status().message().size() < 4096);
    return;
  }
  std::vector<uint32_t> ids(request.token_ids().ids().begin(), request.token_ids().ids().end());
  if (ids.empty()) ids.assign(10, 1);
  if (!ResolvePrompt(request, FuzzLimits(), ids, *resolved).ok()) return;
  const v1::SamplingParams& sampling = resolved->sampling;
  ASYNCTLS_CHECK(std::isfinite(sampling.temperature()) && sampling.temperature() >= 0);
  ASYNCTLS_CHECK(sampling.top_k() >= 0);
  ASYNCTLS_CHECK(sampling.top_p() > 0 && sampling.top_p() <= 1);
  ASYNCTLS_CHECK(sampling.min_p() >= 0 && sampling.min_p() <= 1);
  ASYNCTLS_CHECK(sampling.repetition_penalty() > 0 && sampling.repetition_penalty() <= 10);
  ASYNCTLS_CHECK(std::fabs(sampling.presence_penalty()) <= 2);
  ASYNCTLS_CHECK(std::fabs(sampling.frequency_penalty()) <= 2);
  for (const auto& [id, bias] : sampling.logit_bias()) {
    ASYNCTLS_CHECK(id < FuzzLimits().vocab && std::isfinite(bias));
  }
  ASYNCTLS_CHECK(sampling.top_log_probs() <= 20 && sampling.prompt_top_log_probs() <= 20);
  ASYNCTLS_CHECK(SequenceCount(request.sampling()) >= 1);
  ASYNCTLS_CHECK(SequenceCount(request.sampling()) <= kMaxSequences);
  ASYNCTLS_CHECK(resolved->max_tokens >= 1);
  ASYNCTLS_CHECK(resolved->prompt.size() + resolved->max_tokens <= FuzzLimits().max_positions);
  ASYNCTLS_CHECK(sampling.min_tokens() <= resolved->max_tokens);
  ASYNCTLS_CHECK(resolved->tail < resolved->prompt.size());
  ASYNCTLS_CHECK(resolved->sparse.budget() >= kMinBudget && resolved->sparse.budget() <= 4096);
  for (uint32_t id : resolved->stop_tokens) ASYNCTLS_CHECK(id < FuzzLimits().vocab);
}

}  // namespace asynctls
