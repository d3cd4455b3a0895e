// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_reply.h"

#include <utility>

#include "proto/enum_names.h"
#include "server/frontend/request_checks.h"
#include "server/grpc/kserve_tensor.h"

namespace asynctls {
InferReply::InferReply(const InferRequest& request)
    : options_(request.options),
      prompt_(request.options.echo ? request.request.text() : ""),
      count_(SequenceCount(request.request.sampling())) {}

bool InferReply::Take(const v1::GenerateResponse& response, inference::ModelInferResponse& out) {
  switch (response.event_case()) {
    case v1::GenerateResponse::kStarted:
      sequences_.resize(count_);
      for (Sequence& sequence : sequences_) sequence.text = prompt_;
      prompt_tokens_ = response.started().prompt_tokens();
      return false;
    case v1::GenerateResponse::kDelta:
      TakeDelta(response.delta());
      if (options_.stream) Fill(/*final=*/false, out);
      return options_.stream;
    case v1::GenerateResponse::kFinished:
      TakeFinished(response.finished());
      if (finished_ == count_) Fill(/*final=*/true, out);
      return finished_ == count_;
    case v1::GenerateResponse::kProgress:
    case v1::GenerateResponse::kPromptLogProbs:
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;
  }
  return false;
}

void InferReply::TakeDelta(const v1::Delta& delta) {
  Sequence& sequence = sequences_[delta.index()];
  sequence.text += delta.text();
  sequence.tokens += static_cast<uint32_t>(delta.token_ids_size());
  for (float value : delta.log_probs()) sequence.log_prob += value;
}

void InferReply::TakeFinished(const v1::Finished& finished) {
  ++finished_;
  sequences_[finished.index()].reason = CommonReasonName(finished.reason());
}

void InferReply::Fill(bool final, inference::ModelInferResponse& out) {
  out.Clear();
  out.set_id(options_.id);
  out.set_model_name(options_.model);
  out.set_model_version(options_.model_version);
  (*out.mutable_parameters())["triton_final_response"].set_bool_param(final);
  if (final && options_.stream && options_.empty_final) return;
  std::vector<std::string> texts, reasons;
  std::vector<float> log_probs;
  std::vector<uint32_t> tokens;
  for (Sequence& sequence : sequences_) {
    texts.push_back(std::exchange(sequence.text, ""));
    reasons.push_back(sequence.reason);
    log_probs.push_back(static_cast<float>(sequence.log_prob));
    tokens.push_back(std::exchange(sequence.tokens, 0));
  }
  if (options_.text_output) AddStrings("text_output", texts, options_.raw, out);
  if (options_.finish_reason) AddStrings("finish_reason", reasons, options_.raw, out);
  if (options_.cumulative_logprob) {
    AddFloats("cumulative_logprob", log_probs, options_.raw, out);
  }
  if (options_.num_input_tokens) {
    AddUints("num_input_tokens", {prompt_tokens_}, options_.raw, out);
  }
  if (options_.num_output_tokens) AddUints("num_output_tokens", tokens, options_.raw, out);
}

}  // namespace asynctls
