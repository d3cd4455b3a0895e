// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/request_checks.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/frontend/errors.h"

namespace asynctls {
namespace {

absl::Status CheckIdentity(const v1::GenerateRequest& request, const ServingLimits& limits) {
  const absl::Status model = CheckModelName(request.model(), limits.model.name());
  if (!model.ok()) return model;
  if (request.request_id().size() > kMaxRequestIdBytes) {
    return InvalidField("request_id",
                        " has ",
                        request.request_id().size(),
                        " bytes; the limit is ",
                        kMaxRequestIdBytes);
  }
  for (unsigned char c : request.request_id()) {
    if (!absl::ascii_isprint(c)) return InvalidField("request_id", " must be printable ASCII");
  }
  if (request.cache_salt().size() > kMaxCacheSaltBytes) {
    return InvalidField("cache_salt",
                        " has ",
                        request.cache_salt().size(),
                        " bytes; the limit is ",
                        kMaxCacheSaltBytes);
  }
  return absl::OkStatus();
}

absl::Status CheckPrompt(const v1::GenerateRequest& request, uint32_t vocab) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText:
      return request.text().empty() ? InvalidField("text", " is empty") : absl::OkStatus();
    case v1::GenerateRequest::kTokenIds:
      if (request.token_ids().ids().empty()) return InvalidField("token_ids.ids", " is empty");
      return CheckTokenIds("token_ids.ids", request.token_ids().ids(), vocab);
    case v1::GenerateRequest::kChat:
      return CheckChat("chat.messages", request.chat());
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return FieldError("prompt", "one of text, token_ids and chat is required");
}

// Written so that NaN fails.
absl::Status CheckRange(const char* field, float value, float low, float high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidField(field, " ", value, " is outside ", low, " to ", high);
}

absl::Status CheckRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidField(field, " ", value, " is outside ", low, " to ", high);
}

absl::Status ResolvePenalties(const v1::Sampling& asked, uint32_t vocab, v1::SamplingParams& out) {
  const float repetition = asked.has_repetition_penalty() ? asked.repetition_penalty() : 1;
  absl::Status status =
      CheckRange("sampling.presence_penalty", asked.presence_penalty(), -2.0f, 2.0f);
  status.Update(CheckRange("sampling.frequency_penalty", asked.frequency_penalty(), -2.0f, 2.0f));
  status.Update(CheckRange("sampling.repetition_penalty", repetition, 0.0f, 10.0f));
  if (repetition == 0) {
    status.Update(InvalidField("sampling.repetition_penalty", " must be more than 0"));
  }
  if (asked.logit_bias_size() > kMaxLogitBiases) {
    status.Update(InvalidField("sampling.logit_bias",
                               " has ",
                               asked.logit_bias_size(),
                               " ids; the limit is ",
                               kMaxLogitBiases));
  }
  for (const auto& [id, bias] : asked.logit_bias()) {
    if (id >= vocab) {
      status.Update(
          InvalidField("sampling.logit_bias", " names id ", id, "; ids end at ", vocab - 1));
    }
    status.Update(CheckRange("sampling.logit_bias", bias, -100.0f, 100.0f));
  }
  out.set_presence_penalty(asked.presence_penalty());
  out.set_frequency_penalty(asked.frequency_penalty());
  out.set_repetition_penalty(repetition);
  if (status.ok()) *out.mutable_logit_bias() = asked.logit_bias();
  return status;
}

absl::Status ResolveLogProbs(const v1::ResponseOptions& asked, v1::SamplingParams& out) {
  absl::Status status =
      CheckRange("response.top_log_probs", int64_t{asked.top_log_probs()}, 0, kMaxTopLogProbs);
  status.Update(CheckRange(
      "response.prompt_log_probs", int64_t{asked.prompt_log_probs()}, 0, kMaxTopLogProbs));
  out.set_top_log_probs(asked.top_log_probs());
  out.set_prompt_log_probs(asked.has_prompt_log_probs());
  out.set_prompt_top_log_probs(asked.prompt_log_probs());
  return status;
}

absl::Status ResolveSampling(const v1::Sampling& asked,
                             const v1::ModelInfo& model,
                             v1::SamplingParams& out) {
  const bool greedy = model.has_do_sample() && !model.do_sample();
  const float model_temperature = greedy ? 0 : model.has_temperature() ? model.temperature() : 1;
  const float temperature = asked.has_temperature() ? asked.temperature() : model_temperature;
  absl::Status status = CheckRange("sampling.temperature", temperature, 0.0f, 100.0f);
  const int32_t top_k = asked.has_top_k() ? asked.top_k() : static_cast<int32_t>(model.top_k());
  if (top_k < -1) status.Update(InvalidField("sampling.top_k", " ", top_k, " is below -1 (off)"));
  const float top_p = asked.has_top_p() ? asked.top_p() : model.has_top_p() ? model.top_p() : 1;
  status.Update(CheckRange("sampling.top_p", top_p, 0.0f, 1.0f));
  if (top_p == 0) status.Update(InvalidField("sampling.top_p", " must be more than 0"));
  status.Update(CheckRange("sampling.min_p", asked.min_p(), 0.0f, 1.0f));
  if (asked.has_n()) {
    status.Update(CheckRange("sampling.n", int64_t{asked.n()}, 1, kMaxSequences));
  }
  out.set_temperature(temperature < kMinTemperature ? 0 : temperature);
  out.set_top_k(std::max(top_k, 0));
  out.set_top_p(top_p);
  out.set_min_p(asked.min_p());
  out.set_seed(asked.seed());
  return status;
}

absl::Status ResolveSparse(const v1::Sparse& asked,
                           const ServingLimits& limits,
                           v1::SparseParams& out) {
  out = limits.sparse;
  if (!v1::AttentionMode_IsValid(asked.mode())) {
    return InvalidField("sparse.mode", " ", static_cast<int>(asked.mode()), " is unknown");
  }
  if (!v1::Selector_IsValid(asked.selector())) {
    return InvalidField("sparse.selector", " ", static_cast<int>(asked.selector()), " is unknown");
  }
  if (asked.mode() != v1::ATTENTION_MODE_UNSPECIFIED) out.set_mode(asked.mode());
  if (asked.selector() != v1::SELECTOR_UNSPECIFIED) out.set_selector(asked.selector());
  if (asked.has_budget()) out.set_budget(asked.budget());
  if (asked.has_blocks()) out.set_blocks(asked.blocks());
  if (asked.has_top_p()) out.set_top_p(asked.top_p());

  if (out.selector() == v1::SELECTOR_BOUND && !limits.bound_selector) {
    return InvalidField("sparse.selector", " bound is off in this server (--bound-selector)");
  }
  if (out.budget() < kMinBudget || out.budget() > limits.max_budget) {
    return InvalidField(
        "sparse.budget", " ", out.budget(), " is outside ", kMinBudget, " to ", limits.max_budget);
  }
  if (out.blocks() < kMinBlocks) {
    return InvalidField("sparse.blocks", " ", out.blocks(), " is below ", kMinBlocks);
  }
  return CheckRange("sparse.top_p", out.top_p(), 0.0f, 1.0f);
}

absl::Status CheckStopping(const v1::Stopping& stopping, uint32_t vocab) {
  if (stopping.has_max_tokens() && stopping.max_tokens() == 0) {
    return InvalidField("stopping.max_tokens", " must be at least 1");
  }
  if (stopping.stop_size() > kMaxStopStrings) {
    return InvalidField(
        "stopping.stop", " has ", stopping.stop_size(), " strings; the limit is ", kMaxStopStrings);
  }
  for (const std::string& stop : stopping.stop()) {
    if (stop.empty()) return InvalidField("stopping.stop", " holds an empty string");
    if (stop.size() > kMaxStopStringBytes) {
      return InvalidField("stopping.stop",
                          " holds a string of ",
                          stop.size(),
                          " bytes; the limit is ",
                          kMaxStopStringBytes);
    }
  }
  if (stopping.stop_token_ids_size() > kMaxStopTokens) {
    return InvalidField("stopping.stop_token_ids",
                        " has ",
                        stopping.stop_token_ids_size(),
                        " ids; the limit is ",
                        kMaxStopTokens);
  }
  return CheckTokenIds("stopping.stop_token_ids", stopping.stop_token_ids(), vocab);
}

}  // namespace

uint32_t SequenceCount(const v1::Sampling& sampling) { return sampling.has_n() ? sampling.n() : 1; }

absl::StatusOr<Request> ResolveRequest(const v1::GenerateRequest& request,
                                       const ServingLimits& limits) {
  Request out;
  absl::Status status = CheckIdentity(request, limits);
  if (status.ok()) status = CheckPrompt(request, limits.vocab);
  if (status.ok()) status = ResolveSampling(request.sampling(), limits.model, out.sampling);
  if (status.ok()) status = ResolvePenalties(request.sampling(), limits.vocab, out.sampling);
  if (status.ok()) status = ResolveLogProbs(request.response(), out.sampling);
  if (status.ok()) status = ResolveSparse(request.sparse(), limits, out.sparse);
  if (status.ok()) status = CheckStopping(request.stopping(), limits.vocab);
  if (status.ok()) status = CheckRange("priority", int64_t{request.priority()}, -100, 100);
  if (status.ok() && request.sparse().tail() > kMaxTail) {
    status = InvalidField("sparse.tail", " ", request.sparse().tail(), " is more than ", kMaxTail);
  }
  if (!status.ok()) return status;
  out.id = request.request_id();
  out.cache_salt = request.cache_salt();
  out.priority = request.priority();
  out.tail = request.sparse().tail();
  const v1::Stopping& stopping = request.stopping();
  if (!stopping.ignore_eos()) {
    out.stop_tokens.assign(limits.model.eos_token_ids().begin(),
                           limits.model.eos_token_ids().end());
  }
  out.stop_tokens.insert(
      out.stop_tokens.end(), stopping.stop_token_ids().begin(), stopping.stop_token_ids().end());
  if (stopping.min_tokens() > 0) {
    out.sampling.set_min_tokens(stopping.min_tokens());
    out.sampling.mutable_suppressed_ids()->Assign(out.stop_tokens.begin(), out.stop_tokens.end());
  }
  return out;
}

absl::Status ResolvePrompt(const v1::GenerateRequest& request,
                           const ServingLimits& limits,
                           std::vector<uint32_t> ids,
                           Request& resolved) {
  if (ids.empty()) return FieldError("prompt", "the prompt has no tokens");
  const uint64_t prompt = ids.size();
  if (prompt >= limits.max_positions) {
    return FieldError(
        "prompt",
        absl::StrCat(
            "the prompt has ", prompt, " tokens; the limit is ", limits.max_positions - 1));
  }
  if (resolved.tail >= prompt) {
    return InvalidField(
        "sparse.tail", " ", resolved.tail, " must be less than the prompt's ", prompt, " tokens");
  }
  const uint64_t room = limits.max_positions - prompt;
  const v1::Stopping& stopping = request.stopping();
  if (stopping.has_max_tokens() && stopping.max_tokens() > room) {
    return InvalidField("stopping.max_tokens",
                        " ",
                        stopping.max_tokens(),
                        " with a prompt of ",
                        prompt,
                        " tokens is over the limit of ",
                        limits.max_positions,
                        " positions");
  }
  resolved.max_tokens = stopping.has_max_tokens()
                            ? stopping.max_tokens()
                            : static_cast<uint32_t>(std::min<uint64_t>(room, kDefaultMaxTokens));
  if (stopping.min_tokens() > resolved.max_tokens) {
    return InvalidField("stopping.min_tokens",
                        " ",
                        stopping.min_tokens(),
                        " is more than max_tokens, ",
                        resolved.max_tokens);
  }
  resolved.prompt = std::move(ids);
  return absl::OkStatus();
}

absl::Status CheckModelName(const std::string& name, const std::string& served) {
  if (name.size() > kMaxModelNameBytes) {
    return InvalidField("model", " has ", name.size(), " bytes; the limit is ", kMaxModelNameBytes);
  }
  if (name.empty() || name == served) return absl::OkStatus();
  return WithReason(
      absl::NotFoundError(absl::StrCat(
          "model '", absl::CHexEscape(name), "' is not served here; '", served, "' is")),
      "MODEL_NOT_FOUND");
}

absl::Status CheckTokenIds(const char* field,
                           const google::protobuf::RepeatedField<uint32_t>& ids,
                           uint32_t vocab) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= vocab) {
      return InvalidField(field, "[", i, "] is ", ids[i], "; ids end at ", vocab - 1);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckChat(const char* field, const v1::ChatMessages& chat) {
  if (chat.messages().empty()) return InvalidField(field, " is empty");
  if (chat.messages_size() > kMaxChatMessages) {
    return InvalidField(
        field, " has ", chat.messages_size(), " messages; the limit is ", kMaxChatMessages);
  }
  for (int i = 0; i < chat.messages_size(); ++i) {
    const std::string& role = chat.messages(i).role();
    if (role != "system" && role != "user" && role != "assistant") {
      return InvalidField(field, "[", i, "].role must be system, user or assistant");
    }
  }
  return absl::OkStatus();
}

int64_t PromptBytes(const v1::GenerateRequest& request) {
  if (request.has_token_ids()) return request.token_ids().ids_size() * sizeof(uint32_t);
  if (!request.has_chat()) return static_cast<int64_t>(request.text().size());
  int64_t bytes = 0;
  for (const v1::ChatMessage& message : request.chat().messages()) {
    bytes += static_cast<int64_t>(message.content().size());
  }
  return bytes;
}

}  // namespace asynctls
