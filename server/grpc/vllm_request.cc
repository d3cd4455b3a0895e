// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/vllm_request.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/frontend/errors.h"
#include "server/frontend/request_checks.h"

namespace asynctls {
namespace {

namespace vllm_pb = ::vllm::grpc::engine;

constexpr std::pair<absl::string_view, absl::string_view> kFields[] = {
    {"token_ids.ids", "tokenized.input_ids"},
    {"one of text, token_ids and chat", "one of tokenized and text"},
    {"sampling.", "sampling_params."},
    {"stopping.", "sampling_params."},
    {"response.top_log_probs", "sampling_params.logprobs"},
    {"response.prompt_log_probs", "sampling_params.prompt_logprobs"},
};

absl::Status CheckConstraint(const vllm_pb::SamplingParams& params) {
  switch (params.constraint_case()) {
    case vllm_pb::SamplingParams::kJsonSchema:
      return UnsupportedField("sampling_params.json_schema");
    case vllm_pb::SamplingParams::kRegex:
      return UnsupportedField("sampling_params.regex");
    case vllm_pb::SamplingParams::kGrammar:
      return UnsupportedField("sampling_params.grammar");
    case vllm_pb::SamplingParams::kStructuralTag:
      return UnsupportedField("sampling_params.structural_tag");
    case vllm_pb::SamplingParams::kJsonObject:
      return UnsupportedField("sampling_params.json_object");
    case vllm_pb::SamplingParams::kChoice:
      return UnsupportedField("sampling_params.choice");
    case vllm_pb::SamplingParams::CONSTRAINT_NOT_SET:
      break;
  }
  if (params.grammar_from_first_token()) {
    return UnsupportedField("sampling_params.grammar_from_first_token");
  }
  if (params.has_truncate_prompt_tokens()) {
    return UnsupportedField("sampling_params.truncate_prompt_tokens");
  }
  return absl::OkStatus();
}

absl::Status CheckSupported(const vllm_pb::GenerateRequest& in) {
  if (in.has_kv_transfer_params()) return UnsupportedField("kv_transfer_params");
  if (in.has_kv_transfer_params_json()) return UnsupportedField("kv_transfer_params_json");
  if (in.has_mm_inputs()) return UnsupportedField("mm_inputs");
  if (!in.extra_mm_inputs().empty()) return UnsupportedField("extra_mm_inputs");
  if (in.has_media_refs()) return UnsupportedField("media_refs");
  if (in.has_data_parallel_rank() && in.data_parallel_rank() != 0) {
    return InvalidField(
        "data_parallel_rank", " ", in.data_parallel_rank(), " is not 0, the only rank");
  }
  return CheckConstraint(in.sampling_params());
}

absl::Status CheckLogProbs(const char* field, int32_t value) {
  if (value >= 0 && value <= kMaxTopLogProbs) return absl::OkStatus();
  return InvalidField(field, " ", value, " is outside 0 to ", kMaxTopLogProbs);
}

absl::Status FillSampling(const vllm_pb::SamplingParams& params, v1::Sampling& out) {
  out.set_temperature(params.has_temperature() ? params.temperature() : 1);
  out.set_top_p(params.top_p() == 0 ? 1 : params.top_p());
  if (params.top_k() > INT32_MAX) {
    return InvalidField("sampling_params.top_k", " ", params.top_k(), " is above ", INT32_MAX);
  }
  out.set_top_k(static_cast<int32_t>(params.top_k()));
  out.set_min_p(params.min_p());
  out.set_frequency_penalty(params.frequency_penalty());
  out.set_presence_penalty(params.presence_penalty());
  out.set_repetition_penalty(params.repetition_penalty() == 0 ? 1 : params.repetition_penalty());
  if (params.has_seed()) out.set_seed(static_cast<uint64_t>(int64_t{params.seed()}));
  out.set_n(std::max(params.n(), 1u));
  for (const auto& [id, bias] : params.logit_bias()) {
    if (id < 0) return InvalidField("sampling_params.logit_bias", " names id ", id);
    (*out.mutable_logit_bias())[static_cast<uint32_t>(id)] = bias;
  }
  return absl::OkStatus();
}

void FillStopping(const vllm_pb::SamplingParams& params, v1::Stopping& out) {
  if (params.has_max_tokens()) out.set_max_tokens(params.max_tokens());
  out.set_min_tokens(params.min_tokens());
  *out.mutable_stop() = params.stop();
  *out.mutable_stop_token_ids() = params.stop_token_ids();
  out.set_ignore_eos(params.ignore_eos());
  out.set_include_stop(params.include_stop_str_in_output());
}

absl::Status FillResponse(const vllm_pb::SamplingParams& params, v1::ResponseOptions& out) {
  out.set_text(false);
  out.set_token_ids(true);
  out.set_skip_special_tokens(params.skip_special_tokens());
  if (params.has_logprobs()) {
    const absl::Status status = CheckLogProbs("sampling_params.logprobs", params.logprobs());
    if (!status.ok()) return status;
    out.set_log_probs(true);
    out.set_top_log_probs(static_cast<uint32_t>(params.logprobs()));
  }
  if (params.has_prompt_logprobs()) {
    const absl::Status status =
        CheckLogProbs("sampling_params.prompt_logprobs", params.prompt_logprobs());
    if (!status.ok()) return status;
    out.set_prompt_log_probs(static_cast<uint32_t>(params.prompt_logprobs()));
  }
  return absl::OkStatus();
}

// Bounds what is gathered before a complete message is sent.
absl::Status CheckUnstreamed(const v1::GenerateRequest& request) {
  const v1::ResponseOptions& response = request.response();
  const uint64_t max_tokens =
      request.stopping().has_max_tokens() ? request.stopping().max_tokens() : kDefaultMaxTokens;
  uint64_t values = request.sampling().n() * max_tokens * (1 + response.top_log_probs());
  if (response.has_prompt_log_probs()) {
    // A token is at least a byte.
    const uint64_t prompt =
        request.has_token_ids() ? request.token_ids().ids_size() : request.text().size();
    values += prompt * (1 + response.prompt_log_probs());
  }
  if (values <= kMaxUnstreamedValues) return absl::OkStatus();
  return FieldError("stream",
                    absl::StrCat("stream is false and the answer may hold ",
                                 values,
                                 " ids and log-probabilities; the limit is ",
                                 kMaxUnstreamedValues,
                                 "; ask for a stream"));
}

}  // namespace

absl::StatusOr<v1::GenerateRequest> FromVllmRequest(const vllm_pb::GenerateRequest& in) {
  absl::Status status = CheckSupported(in);
  if (!status.ok()) return status;
  v1::GenerateRequest out;
  out.set_request_id(in.request_id());
  if (in.has_tokenized()) *out.mutable_token_ids()->mutable_ids() = in.tokenized().input_ids();
  if (in.has_text()) out.set_text(in.text());
  const vllm_pb::SamplingParams& params = in.sampling_params();
  status = FillSampling(params, *out.mutable_sampling());
  FillStopping(params, *out.mutable_stopping());
  if (status.ok()) status = FillResponse(params, *out.mutable_response());
  if (status.ok() && !in.stream() && out.sampling().n() <= kMaxSequences) {
    status = CheckUnstreamed(out);
  }
  if (!status.ok()) return status;
  return out;
}

absl::Status ToVllmError(const absl::Status& status) { return RenameFields(status, kFields); }

}  // namespace asynctls
