// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_reply.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/infer_request.h"

namespace asynctls::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

v1::GenerateResponse Started() {
  v1::GenerateResponse response;
  response.mutable_started()->set_prompt_tokens(4);
  return response;
}

v1::GenerateResponse Delta(uint32_t index, const std::string& text) {
  v1::GenerateResponse response;
  response.mutable_delta()->set_index(index);
  response.mutable_delta()->set_text(text);
  response.mutable_delta()->add_token_ids(1);
  response.mutable_delta()->add_log_probs(-0.5f);
  return response;
}

v1::GenerateResponse Finished(uint32_t index, v1::FinishReason reason) {
  v1::GenerateResponse response;
  response.mutable_finished()->set_index(index);
  response.mutable_finished()->set_reason(reason);
  return response;
}

InferRequest Request() {
  InferRequest request;
  request.request.set_text("prompt ");
  request.options.id = "7";
  request.options.model = "m";
  request.options.model_version = "1";
  return request;
}

TEST(InferReplyTest, AStreamIsPiecesAndAnEmptyEnd) {
  InferRequest request = Request();
  request.options.stream = true;
  InferReply reply(request);
  inference::ModelInferResponse out;
  EXPECT_FALSE(reply.Take(Started(), out));
  for (const char* text : {"one ", "two"}) {
    ASSERT_TRUE(reply.Take(Delta(0, text), out));
    EXPECT_THAT(OutputStrings(out, "text_output"), ElementsAre(text));
    EXPECT_FALSE(IsFinal(out));
    EXPECT_EQ(out.id(), "7");
    EXPECT_EQ(out.model_name(), "m");
    EXPECT_EQ(out.model_version(), "1");
  }
  ASSERT_TRUE(reply.Take(Finished(0, v1::FINISH_REASON_STOP), out));
  EXPECT_TRUE(IsFinal(out));
  EXPECT_THAT(OutputStrings(out, "text_output"), ElementsAre(""));
}

TEST(InferReplyTest, AnEmptyFinalResponseHasNoOutputs) {
  InferRequest request = Request();
  request.options.stream = true;
  request.options.empty_final = true;
  InferReply reply(request);
  inference::ModelInferResponse out;
  EXPECT_FALSE(reply.Take(Started(), out));
  ASSERT_TRUE(reply.Take(Finished(0, v1::FINISH_REASON_STOP), out));
  EXPECT_TRUE(IsFinal(out));
  EXPECT_EQ(out.id(), "7");
  EXPECT_EQ(out.outputs_size(), 0);
}

TEST(InferReplyTest, WithoutAStreamThereIsOneResponse) {
  InferRequest request = Request();
  request.options.echo = true;
  request.options.raw = true;
  request.request.mutable_sampling()->set_n(2);
  InferReply reply(request);
  inference::ModelInferResponse out;
  EXPECT_FALSE(reply.Take(Started(), out));
  EXPECT_FALSE(reply.Take(Delta(0, "a"), out));
  EXPECT_FALSE(reply.Take(Delta(1, "b"), out));
  EXPECT_FALSE(reply.Take(Delta(0, "c"), out));
  EXPECT_FALSE(reply.Take(Finished(1, v1::FINISH_REASON_STOP), out));
  ASSERT_TRUE(reply.Take(Finished(0, v1::FINISH_REASON_STOP), out));
  EXPECT_THAT(OutputStrings(out, "text_output"), ElementsAre("prompt ac", "prompt b"));
  EXPECT_EQ(out.raw_output_contents_size(), 1);
  EXPECT_TRUE(IsFinal(out));
}

TEST(InferReplyTest, TheOtherOutputsComeWhereAskedFor) {
  InferRequest request = Request();
  request.options.stream = true;
  request.options.text_output = false;
  request.options.finish_reason = true;
  request.options.cumulative_logprob = true;
  request.options.num_input_tokens = true;
  request.options.num_output_tokens = true;
  InferReply reply(request);
  inference::ModelInferResponse out;
  EXPECT_FALSE(reply.Take(Started(), out));
  ASSERT_TRUE(reply.Take(Delta(0, "a"), out));
  ASSERT_TRUE(reply.Take(Delta(0, "b"), out));
  EXPECT_THAT(OutputStrings(out, "text_output"), IsEmpty());
  EXPECT_THAT(OutputStrings(out, "finish_reason"), ElementsAre("None"));
  ASSERT_EQ(out.outputs_size(), 4);
  EXPECT_EQ(out.outputs(1).contents().fp32_contents(0), -1.0f);  // so far
  EXPECT_EQ(out.outputs(2).contents().uint_contents(0), 4u);
  EXPECT_EQ(out.outputs(3).contents().uint_contents(0), 1u);  // in this response
  ASSERT_TRUE(reply.Take(Finished(0, v1::FINISH_REASON_LENGTH), out));
  EXPECT_THAT(OutputStrings(out, "finish_reason"), ElementsAre("length"));
  EXPECT_EQ(out.outputs(3).contents().uint_contents(0), 0u);
}

}  // namespace
}  // namespace asynctls::testing
