// SPDX-License-Identifier: Apache-2.0
#include "server/http/openai_format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>

#include "engine/base/json.h"

namespace asynctls {
namespace {

class OpenAiFormatTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load(std::string(ASYNCTLS_SOURCE_DIR) +
                                  "/deploy/models/demo-qwen3/tokenizer.json");
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
    for (const char* text : {"a", "b", "\xc3"}) {
      ids_.push_back(0);
      while (tokenizer_->BytesOf(ids_.back()) != text) ++ids_.back();
    }
  }
  // "a" with the alternatives "b" and itself.
  TokenLogProb Token() const {
    TokenLogProb token;
    token.id = ids_[0];
    token.log_prob = -0.5f;
    token.top.add_token_ids(ids_[1]);
    token.top.add_log_probs(-0.25f);
    token.top.add_token_ids(ids_[0]);
    token.top.add_log_probs(-0.5f);
    return token;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<uint32_t> ids_;  // of "a", "b" and half a character
};

TEST_F(OpenAiFormatTest, StringsAreSafe) {
  EXPECT_EQ(JsonString("a\"\n<\x01"), R"("a\"\n<\u0001")");
  EXPECT_EQ(JsonString("\xe2\x82\xac"), "\"\xe2\x82\xac\"");
  EXPECT_EQ(JsonString("\xff"), "\"\xef\xbf\xbd\"");
}

TEST_F(OpenAiFormatTest, Heads) {
  EXPECT_EQ(ObjectHead("i\"d", "text_completion", 7, "m"),
            R"({"id":"i\"d","object":"text_completion","created":7,"model":"m","choices":[)");
}

TEST_F(OpenAiFormatTest, Ends) {
  v1::Finished finished;
  finished.set_reason(v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(FinishMembers(finished), R"("finish_reason":"length","stop_reason":null)");
  finished.set_reason(v1::FINISH_REASON_STOP);
  finished.set_stop_token_id(9);
  EXPECT_EQ(FinishMembers(finished), R"("finish_reason":"stop","stop_reason":9)");
  finished.set_stop_string("x\"");
  EXPECT_EQ(FinishMembers(finished), R"("finish_reason":"stop","stop_reason":"x\"")");
}

TEST_F(OpenAiFormatTest, UsageCountsAPromptOnce) {
  v1::Usage one, total;
  one.set_prompt_tokens(10);
  one.set_cached_tokens(4);
  one.set_completion_tokens(3);
  one.mutable_kv_read()->set_bytes(100);
  one.mutable_kv_read()->set_dense_bytes(400);
  one.set_decode_steps(2);
  AddUsage(one, /*first=*/true, total);
  AddUsage(one, /*first=*/false, total);
  EXPECT_EQ(UsageJson(total),
            R"({"prompt_tokens":10,"completion_tokens":6,"total_tokens":16,)"
            R"("prompt_tokens_details":{"cached_tokens":4},)"
            R"("asynctls":{"kv_bytes_read":200,"kv_bytes_dense":800,"decode_steps":4}})");
}

TEST_F(OpenAiFormatTest, ChatLogProbs) {
  TokenLogProb half;
  half.id = ids_[2];
  half.log_prob = -INFINITY;
  EXPECT_EQ(ChatLogProbs({Token(), half}, *tokenizer_),
            "[{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97],\"top_logprobs\":["
            "{\"token\":\"b\",\"logprob\":-0.25,\"bytes\":[98]},"
            "{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97]}]},"
            "{\"token\":\"\xef\xbf\xbd\",\"logprob\":-9999.0,\"bytes\":[195],"
            "\"top_logprobs\":[]}]");
  EXPECT_EQ(ChatLogProbs({}, *tokenizer_), "[]");
}

TEST_F(OpenAiFormatTest, CompletionLogProbs) {
  size_t offset = 5;
  EXPECT_EQ(CompletionLogProbs({Token(), Token()}, *tokenizer_, /*first_has_none=*/true, offset),
            R"({"tokens":["a","a"],"token_logprobs":[null,-0.5],)"
            R"("top_logprobs":[null,{"a":-0.5,"b":-0.25}],"text_offset":[5,6]})");
  EXPECT_EQ(offset, 7u);
}

TEST_F(OpenAiFormatTest, PromptLogProbs) {
  TokenLogProb unlikely = Token();
  unlikely.id = ids_[2];
  const Json json = Json::parse(PromptLogProbsJson({Token(), unlikely}, *tokenizer_));
  ASSERT_EQ(json.size(), 3u);
  EXPECT_TRUE(json[0].is_null());
  const std::string a = std::to_string(ids_[0]), b = std::to_string(ids_[1]);
  EXPECT_EQ(json[1][a]["rank"], 2);
  EXPECT_EQ(json[1][b]["rank"], 1);
  EXPECT_EQ(json[1][b]["decoded_token"], "b");
  EXPECT_EQ(json[1][b]["logprob"], -0.25);
  EXPECT_TRUE(json[2][std::to_string(ids_[2])]["rank"].is_null());
  EXPECT_EQ(json[2].size(), 3u);
}

TEST_F(OpenAiFormatTest, TokensOfMessages) {
  v1::Delta delta;
  delta.add_token_ids(1);
  delta.add_token_ids(2);
  delta.add_log_probs(-1);
  delta.add_log_probs(-2);
  delta.add_top_log_probs()->add_token_ids(3);
  const std::vector<TokenLogProb> tokens = LogProbsOf(delta);
  ASSERT_EQ(tokens.size(), 2u);
  EXPECT_EQ(tokens[0].top.token_ids(0), 3u);
  EXPECT_EQ(tokens[1].id, 2u);
  EXPECT_EQ(tokens[1].log_prob, -2);
  EXPECT_EQ(tokens[1].top.token_ids_size(), 0);
}

}  // namespace
}  // namespace asynctls
