// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/vllm_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "server/frontend/errors.h"

namespace asynctls::testing {
namespace {

namespace vllm_pb = ::vllm::grpc::engine;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

vllm_pb::GenerateRequest Valid() {
  vllm_pb::GenerateRequest request;
  request.set_request_id("r");
  request.mutable_tokenized()->add_input_ids(5);
  request.mutable_tokenized()->add_input_ids(6);
  request.set_stream(true);
  return request;
}

TEST(FromVllmRequestTest, ZerosMeanWhatTheProtocolSays) {
  const auto out = FromVllmRequest(Valid());
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->request_id(), "r");
  EXPECT_THAT(out->token_ids().ids(), ElementsAre(5, 6));
  // Set, so that the model's own defaults stay out of it.
  EXPECT_TRUE(out->sampling().has_temperature());
  EXPECT_EQ(out->sampling().temperature(), 1);
  EXPECT_TRUE(out->sampling().has_top_p());
  EXPECT_EQ(out->sampling().top_p(), 1);
  EXPECT_TRUE(out->sampling().has_top_k());
  EXPECT_EQ(out->sampling().top_k(), 0);
  EXPECT_EQ(out->sampling().repetition_penalty(), 1);
  EXPECT_EQ(out->sampling().n(), 1u);
  EXPECT_FALSE(out->sampling().has_seed());
  EXPECT_FALSE(out->stopping().has_max_tokens());
  EXPECT_FALSE(out->response().text());
  EXPECT_TRUE(out->response().token_ids());
  EXPECT_FALSE(out->response().log_probs());
  EXPECT_FALSE(out->response().has_prompt_log_probs());
}

TEST(FromVllmRequestTest, EveryFieldArrives) {
  vllm_pb::GenerateRequest request = Valid();
  request.set_text("once");
  request.set_data_parallel_rank(0);
  vllm_pb::SamplingParams& params = *request.mutable_sampling_params();
  params.set_temperature(0);
  params.set_top_p(0.5f);
  params.set_top_k(7);
  params.set_min_p(0.1f);
  params.set_frequency_penalty(0.2f);
  params.set_presence_penalty(0.3f);
  params.set_repetition_penalty(1.1f);
  params.set_max_tokens(9);
  params.set_min_tokens(2);
  params.add_stop("end");
  params.add_stop_token_ids(3);
  params.set_skip_special_tokens(true);
  params.set_ignore_eos(true);
  params.set_n(2);
  params.set_logprobs(3);
  params.set_prompt_logprobs(0);
  params.set_seed(-1);
  params.set_include_stop_str_in_output(true);
  (*params.mutable_logit_bias())[4] = -2;
  const auto out = FromVllmRequest(request);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->text(), "once");
  EXPECT_EQ(out->sampling().temperature(), 0);
  EXPECT_EQ(out->sampling().top_p(), 0.5f);
  EXPECT_EQ(out->sampling().top_k(), 7);
  EXPECT_EQ(out->sampling().min_p(), 0.1f);
  EXPECT_EQ(out->sampling().frequency_penalty(), 0.2f);
  EXPECT_EQ(out->sampling().presence_penalty(), 0.3f);
  EXPECT_EQ(out->sampling().repetition_penalty(), 1.1f);
  EXPECT_EQ(out->sampling().n(), 2u);
  EXPECT_EQ(out->sampling().seed(), UINT64_MAX);
  EXPECT_EQ(out->sampling().logit_bias().at(4), -2);
  EXPECT_EQ(out->stopping().max_tokens(), 9u);
  EXPECT_EQ(out->stopping().min_tokens(), 2u);
  EXPECT_THAT(out->stopping().stop(), ElementsAre("end"));
  EXPECT_THAT(out->stopping().stop_token_ids(), ElementsAre(3));
  EXPECT_TRUE(out->stopping().ignore_eos());
  EXPECT_TRUE(out->stopping().include_stop());
  EXPECT_TRUE(out->response().skip_special_tokens());
  EXPECT_TRUE(out->response().log_probs());
  EXPECT_EQ(out->response().top_log_probs(), 3u);
  EXPECT_TRUE(out->response().has_prompt_log_probs());
}

struct Refusal {
  std::string field;
  absl::StatusCode code;
  std::function<void(vllm_pb::GenerateRequest&)> spoil;
};

TEST(FromVllmRequestTest, WhatIsNotDoneIsRefusedByName) {
  const auto unimplemented = absl::StatusCode::kUnimplemented;
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto params = [](vllm_pb::GenerateRequest& r) { return r.mutable_sampling_params(); };
  const std::vector<Refusal> cases = {
      {"json_schema", unimplemented, [&](auto& r) { params(r)->set_json_schema(""); }},
      {"regex", unimplemented, [&](auto& r) { params(r)->set_regex("(a*)*"); }},
      {"grammar", unimplemented, [&](auto& r) { params(r)->set_grammar("x"); }},
      {"structural_tag", unimplemented, [&](auto& r) { params(r)->set_structural_tag("x"); }},
      {"json_object", unimplemented, [&](auto& r) { params(r)->set_json_object(false); }},
      {"choice", unimplemented, [&](auto& r) { params(r)->mutable_choice(); }},
      {"grammar_from_first_token",
       unimplemented,
       [&](auto& r) { params(r)->set_grammar_from_first_token(true); }},
      {"truncate_prompt_tokens",
       unimplemented,
       [&](auto& r) { params(r)->set_truncate_prompt_tokens(-1); }},
      {"kv_transfer_params", unimplemented, [](auto& r) { r.mutable_kv_transfer_params(); }},
      {"kv_transfer_params_json",
       unimplemented,
       [](auto& r) { r.set_kv_transfer_params_json(""); }},
      {"mm_inputs", unimplemented, [](auto& r) { r.mutable_mm_inputs(); }},
      {"extra_mm_inputs", unimplemented, [](auto& r) { r.add_extra_mm_inputs(); }},
      {"media_refs", unimplemented, [](auto& r) { r.mutable_media_refs(); }},
      {"data_parallel_rank", invalid, [](auto& r) { r.set_data_parallel_rank(1); }},
      {"logprobs -1", invalid, [&](auto& r) { params(r)->set_logprobs(-1); }},
      {"logprobs 1000000", invalid, [&](auto& r) { params(r)->set_logprobs(1000000); }},
      {"prompt_logprobs 21", invalid, [&](auto& r) { params(r)->set_prompt_logprobs(21); }},
      {"top_k", invalid, [&](auto& r) { params(r)->set_top_k(UINT32_MAX); }},
      {"logit_bias names id -3",
       invalid,
       [&](auto& r) { (*params(r)->mutable_logit_bias())[-3] = 1; }},
  };
  for (const Refusal& refusal : cases) {
    vllm_pb::GenerateRequest request = Valid();
    refusal.spoil(request);
    const auto out = FromVllmRequest(request);
    EXPECT_EQ(out.status().code(), refusal.code) << refusal.field;
    EXPECT_THAT(std::string(out.status().message()), HasSubstr(refusal.field));
  }
}

TEST(FromVllmRequestTest, AnAnswerInOneMessageIsBounded) {
  vllm_pb::GenerateRequest request = Valid();
  request.set_stream(false);
  vllm_pb::SamplingParams& params = *request.mutable_sampling_params();
  params.set_max_tokens(65536);
  params.set_n(16);
  EXPECT_TRUE(FromVllmRequest(request).ok());
  params.set_logprobs(1);
  const auto out = FromVllmRequest(request);
  EXPECT_EQ(ErrorField(out.status()), "stream");
  EXPECT_THAT(std::string(out.status().message()), HasSubstr("1048576"));
  request.set_stream(true);
  EXPECT_TRUE(FromVllmRequest(request).ok());
  // The prompt counts too, where its log-probabilities are asked for.
  request.set_stream(false);
  params.Clear();
  params.set_max_tokens(1);
  params.set_prompt_logprobs(20);
  EXPECT_TRUE(FromVllmRequest(request).ok());
  request.set_text(std::string(60000, 'a'));
  EXPECT_EQ(ErrorField(FromVllmRequest(request).status()), "stream");
}

TEST(ToVllmErrorTest, FieldsAreThoseOfTheProtocol) {
  const absl::Status status =
      ToVllmError(InvalidField("sampling.temperature", " 101 is outside 0 to 100"));
  EXPECT_EQ(ErrorField(status), "sampling_params.temperature");
  EXPECT_EQ(status.message(), "sampling_params.temperature 101 is outside 0 to 100");
  EXPECT_EQ(ErrorField(ToVllmError(InvalidField("token_ids.ids", " is empty"))),
            "tokenized.input_ids");
}

}  // namespace
}  // namespace asynctls::testing
