// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/vllm_reply.h"

#include <utility>

#include "proto/enum_names.h"

namespace asynctls {
namespace {

namespace vllm_pb = ::vllm::grpc::engine;

void Append(const v1::TopLogProbs& top, vllm_pb::TopLogProbs& out) {
  *out.mutable_token_ids() = top.token_ids();
  *out.mutable_values() = top.log_probs();
}

void Append(const v1::Delta& delta, vllm_pb::OutputLogProbs& out) {
  out.mutable_token_logprobs()->MergeFrom(delta.log_probs());
  out.mutable_token_ids()->MergeFrom(delta.token_ids());
  for (const v1::TopLogProbs& top : delta.top_log_probs()) Append(top, *out.add_top_logprobs());
}

void Append(const v1::PromptLogProbs& prompt, vllm_pb::InputLogProbs& out) {
  const bool top = !prompt.top_log_probs().empty();
  if (prompt.has_first_token_id()) {
    out.add_token_ids(prompt.first_token_id());
    out.add_token_logprobs();
    if (top) out.add_top_logprobs();
  }
  out.mutable_token_ids()->MergeFrom(prompt.token_ids());
  for (float value : prompt.log_probs()) out.add_token_logprobs()->set_value(value);
  for (const v1::TopLogProbs& each : prompt.top_log_probs()) Append(each, *out.add_top_logprobs());
}

int Values(const vllm_pb::InputLogProbs& input) {
  int values = input.token_ids_size();
  for (const vllm_pb::TopLogProbs& top : input.top_logprobs()) values += top.values_size();
  return values;
}

}  // namespace

VllmReply::VllmReply(const v1::GenerateRequest& request, bool stream)
    : stream_(stream),
      stop_ids_(request.stopping().stop_token_ids().begin(),
                request.stopping().stop_token_ids().end()) {}

bool VllmReply::Take(const v1::GenerateResponse& response, vllm_pb::GenerateResponse& out) {
  out.Clear();
  switch (response.event_case()) {
    case v1::GenerateResponse::kStarted:
      prompt_tokens_ = response.started().prompt_tokens();
      return false;
    case v1::GenerateResponse::kPromptLogProbs:
      return TakePrompt(response.prompt_log_probs(), out);
    case v1::GenerateResponse::kDelta:
      return TakeDelta(response.delta(), out);
    case v1::GenerateResponse::kFinished:
      TakeFinished(response.finished(), out);
      return true;
    case v1::GenerateResponse::kProgress:
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;
  }
  return false;
}

bool VllmReply::TakePrompt(const v1::PromptLogProbs& prompt, vllm_pb::GenerateResponse& out) {
  bool full = false;
  if (stream_ && Values(input_) >= kMaxInputLogProbs) {
    vllm_pb::GenerateStreamChunk& chunk = *out.mutable_chunk();
    chunk.set_prompt_tokens(prompt_tokens_);
    chunk.mutable_input_logprobs()->Swap(&input_);
    input_.Clear();
    full = true;
  }
  Append(prompt, input_);
  return full;
}

bool VllmReply::TakeDelta(const v1::Delta& delta, vllm_pb::GenerateResponse& out) {
  if (!stream_) {
    vllm_pb::GenerateComplete& complete = Complete(delta.index());
    complete.mutable_output_ids()->MergeFrom(delta.token_ids());
    if (!delta.log_probs().empty()) Append(delta, *complete.mutable_output_logprobs());
    return false;
  }
  if (delta.token_ids().empty()) return false;
  vllm_pb::GenerateStreamChunk& chunk = *out.mutable_chunk();
  *chunk.mutable_token_ids() = delta.token_ids();
  chunk.set_prompt_tokens(prompt_tokens_);
  chunk.set_completion_tokens(static_cast<uint32_t>(delta.token_ids_size()));
  chunk.set_index(delta.index());
  if (!delta.log_probs().empty()) Append(delta, *chunk.mutable_output_logprobs());
  if (!input_.token_ids().empty()) {
    chunk.mutable_input_logprobs()->Swap(&input_);
    input_.Clear();
  }
  return true;
}

vllm_pb::GenerateComplete& VllmReply::Complete(uint32_t index) {
  if (completes_.size() <= index) completes_.resize(index + 1);
  return completes_[index];
}

void VllmReply::TakeFinished(const v1::Finished& finished, vllm_pb::GenerateResponse& out) {
  vllm_pb::GenerateComplete& complete = *out.mutable_complete();
  if (!stream_) complete.Swap(&Complete(finished.index()));
  if (!input_.token_ids().empty()) *complete.mutable_input_logprobs() = input_;
  complete.set_index(finished.index());
  complete.set_finish_reason(CommonReasonName(finished.reason()));
  complete.set_prompt_tokens(finished.usage().prompt_tokens());
  complete.set_completion_tokens(finished.usage().completion_tokens());
  complete.set_cached_tokens(finished.usage().cached_tokens());
  if (finished.has_stop_string()) complete.set_matched_stop_str(finished.stop_string());
  if (finished.has_stop_token_id() && stop_ids_.contains(finished.stop_token_id())) {
    complete.set_matched_token_id(finished.stop_token_id());
  }
}

}  // namespace asynctls
