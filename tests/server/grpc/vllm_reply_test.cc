// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/vllm_reply.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls::testing {
namespace {

namespace vllm_pb = ::vllm::grpc::engine;
using ::testing::ElementsAre;

v1::GenerateRequest Request(uint32_t n = 1) {
  v1::GenerateRequest request;
  request.mutable_sampling()->set_n(n);
  request.mutable_stopping()->add_stop_token_ids(9);
  return request;
}

v1::GenerateResponse Started(uint32_t prompt_tokens) {
  v1::GenerateResponse response;
  response.mutable_started()->set_prompt_tokens(prompt_tokens);
  return response;
}

v1::GenerateResponse Delta(uint32_t index, const std::vector<uint32_t>& ids, int top = -1) {
  v1::GenerateResponse response;
  v1::Delta& delta = *response.mutable_delta();
  delta.set_index(index);
  for (uint32_t id : ids) {
    delta.add_token_ids(id);
    if (top >= 0) delta.add_log_probs(-1);
    if (top > 0) {
      v1::TopLogProbs& likeliest = *delta.add_top_log_probs();
      likeliest.add_token_ids(id);
      likeliest.add_log_probs(-1);
    }
  }
  return response;
}

v1::GenerateResponse Finished(uint32_t index, v1::FinishReason reason, uint32_t tokens) {
  v1::GenerateResponse response;
  v1::Finished& finished = *response.mutable_finished();
  finished.set_index(index);
  finished.set_reason(reason);
  finished.mutable_usage()->set_prompt_tokens(4);
  finished.mutable_usage()->set_cached_tokens(2);
  finished.mutable_usage()->set_completion_tokens(tokens);
  return response;
}

// The log-probabilities of `count` prompt tokens from `start`, each with 20 likeliest ids.
v1::GenerateResponse Prompt(uint32_t start, int count) {
  v1::GenerateResponse response;
  v1::PromptLogProbs& prompt = *response.mutable_prompt_log_probs();
  prompt.set_start(start);
  if (start == 1) prompt.set_first_token_id(77);
  for (int i = 0; i < count; ++i) {
    prompt.add_token_ids(start + i);
    prompt.add_log_probs(-2);
    v1::TopLogProbs& top = *prompt.add_top_log_probs();
    for (uint32_t id = 0; id < 20; ++id) {
      top.add_token_ids(id);
      top.add_log_probs(-3);
    }
  }
  return response;
}

TEST(VllmReplyTest, AStreamIsChunksAndOneCompletePerSequence) {
  VllmReply reply(Request(2), /*stream=*/true);
  vllm_pb::GenerateResponse out;
  EXPECT_FALSE(reply.Take(Started(4), out));
  ASSERT_TRUE(reply.Take(Delta(1, {10, 11}, 1), out));
  EXPECT_THAT(out.chunk().token_ids(), ElementsAre(10, 11));
  EXPECT_EQ(out.chunk().index(), 1u);
  EXPECT_EQ(out.chunk().prompt_tokens(), 4u);
  EXPECT_EQ(out.chunk().completion_tokens(), 2u);
  EXPECT_THAT(out.chunk().output_logprobs().token_ids(), ElementsAre(10, 11));
  EXPECT_THAT(out.chunk().output_logprobs().token_logprobs(), ElementsAre(-1, -1));
  EXPECT_EQ(out.chunk().output_logprobs().top_logprobs_size(), 2);
  ASSERT_TRUE(reply.Take(Delta(1, {12}), out));
  EXPECT_EQ(out.chunk().completion_tokens(), 1u);  // of this chunk
  EXPECT_FALSE(out.chunk().has_output_logprobs());
  ASSERT_TRUE(reply.Take(Finished(1, v1::FINISH_REASON_LENGTH, 3), out));
  EXPECT_FALSE(out.has_chunk());
  EXPECT_EQ(out.complete().index(), 1u);
  EXPECT_EQ(out.complete().finish_reason(), "length");
  EXPECT_EQ(out.complete().completion_tokens(), 3u);
  EXPECT_EQ(out.complete().cached_tokens(), 2u);
  EXPECT_TRUE(out.complete().output_ids().empty());
}

TEST(VllmReplyTest, WithoutAStreamEverythingComesAtTheEnd) {
  VllmReply reply(Request(2), /*stream=*/false);
  vllm_pb::GenerateResponse out;
  EXPECT_FALSE(reply.Take(Started(4), out));
  EXPECT_FALSE(reply.Take(Prompt(1, 3), out));
  EXPECT_FALSE(reply.Take(Delta(0, {1}, 0), out));
  EXPECT_FALSE(reply.Take(Delta(1, {2}, 0), out));
  EXPECT_FALSE(reply.Take(Delta(0, {3}, 0), out));
  ASSERT_TRUE(reply.Take(Finished(0, v1::FINISH_REASON_ABORTED, 2), out));
  EXPECT_THAT(out.complete().output_ids(), ElementsAre(1, 3));
  EXPECT_EQ(out.complete().finish_reason(), "abort");
  EXPECT_EQ(out.complete().output_logprobs().token_logprobs_size(), 2);
  EXPECT_TRUE(out.complete().output_logprobs().top_logprobs().empty());
  EXPECT_THAT(out.complete().input_logprobs().token_ids(), ElementsAre(77, 1, 2, 3));
  ASSERT_TRUE(reply.Take(Finished(1, v1::FINISH_REASON_STOP, 1), out));
  EXPECT_THAT(out.complete().output_ids(), ElementsAre(2));
  EXPECT_EQ(out.complete().input_logprobs().token_ids_size(), 4);
}

TEST(VllmReplyTest, PromptLogProbsComeWithTheFirstChunk) {
  VllmReply reply(Request(), /*stream=*/true);
  vllm_pb::GenerateResponse out;
  EXPECT_FALSE(reply.Take(Prompt(1, 2), out));
  ASSERT_TRUE(reply.Take(Delta(0, {8}), out));
  const vllm_pb::InputLogProbs& input = out.chunk().input_logprobs();
  EXPECT_THAT(input.token_ids(), ElementsAre(77, 1, 2));
  ASSERT_EQ(input.token_logprobs_size(), 3);
  EXPECT_FALSE(input.token_logprobs(0).has_value());
  EXPECT_EQ(input.token_logprobs(1).value(), -2);
  ASSERT_EQ(input.top_logprobs_size(), 3);
  EXPECT_TRUE(input.top_logprobs(0).values().empty());
  EXPECT_EQ(input.top_logprobs(1).values_size(), 20);
  ASSERT_TRUE(reply.Take(Delta(0, {8}), out));
  EXPECT_FALSE(out.chunk().has_input_logprobs());
}

TEST(VllmReplyTest, ALongPromptsLogProbsComeInSeveralChunks) {
  VllmReply reply(Request(), /*stream=*/true);
  vllm_pb::GenerateResponse out;
  int tokens = 0;
  for (uint32_t start = 1; start < 32 * 1024; start += 1024) {
    if (!reply.Take(Prompt(start, 1024), out)) continue;
    EXPECT_TRUE(out.chunk().token_ids().empty());
    EXPECT_LT(out.ByteSizeLong(), 1u << 20);
    tokens += out.chunk().input_logprobs().token_ids_size();
  }
  EXPECT_GT(tokens, 0);
  ASSERT_TRUE(reply.Take(Delta(0, {8}), out));
  EXPECT_EQ(tokens + out.chunk().input_logprobs().token_ids_size(), 1 + 32 * 1024);
}

TEST(VllmReplyTest, PromptLogProbsAreNotLostWhereNoTokenFollows) {
  VllmReply reply(Request(), /*stream=*/true);
  vllm_pb::GenerateResponse out;
  EXPECT_FALSE(reply.Take(Prompt(1, 2), out));
  ASSERT_TRUE(reply.Take(Finished(0, v1::FINISH_REASON_ABORTED, 0), out));
  EXPECT_EQ(out.complete().input_logprobs().token_ids_size(), 3);
}

TEST(VllmReplyTest, OnlyStopsThatWereAskedForAreMatched) {
  VllmReply reply(Request(), /*stream=*/true);
  vllm_pb::GenerateResponse out;
  v1::GenerateResponse end = Finished(0, v1::FINISH_REASON_STOP, 1);
  end.mutable_finished()->set_stop_token_id(9);
  ASSERT_TRUE(reply.Take(end, out));
  EXPECT_EQ(out.complete().matched_token_id(), 9u);
  end.mutable_finished()->set_stop_token_id(2);  // the model's own
  ASSERT_TRUE(reply.Take(end, out));
  EXPECT_EQ(out.complete().matched_stop_case(), vllm_pb::GenerateComplete::MATCHED_STOP_NOT_SET);
  end.mutable_finished()->set_stop_string("end");
  ASSERT_TRUE(reply.Take(end, out));
  EXPECT_EQ(out.complete().matched_stop_str(), "end");
}

}  // namespace
}  // namespace asynctls::testing
