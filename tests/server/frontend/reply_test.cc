// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/reply.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

namespace asynctls {
namespace {

class ReplyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(std::string(ASYNCTLS_SOURCE_DIR) +
                                     "/deploy/models/demo-qwen3/tokenizer.json");
    ASSERT_TRUE(tokenizer.ok());
    tokenizer_ = *std::move(tokenizer);
  }

  std::vector<uint32_t> Ids(const std::string& text) {
    auto ids = tokenizer_->Encode(text, true);
    EXPECT_TRUE(ids.ok());
    return *std::move(ids);
  }
  // What a client sees of `text` when it is generated, and how many tokens.
  v1::Delta Show(const std::string& text, std::optional<uint32_t> stop_token = std::nullopt) {
    Reply reply(*tokenizer_, options_, stopping_);
    v1::Delta out;
    stopped_at_ = 0;
    const std::vector<uint32_t> ids = Ids(text);
    for (uint32_t id : ids) {
      ReplyToken token{0, id, -0.5f, nullptr};
      if (options_.top_log_probs() > 0) {
        token.top = std::make_unique<v1::TopIds>();
        token.top->add_ids(id);
        token.top->add_log_probs(-0.5f);
      }
      if (reply.Take(token, out)) stopped_at_ = reply.tokens();
    }
    reply.Flush(stop_token, out);
    tokens_ = reply.tokens();
    stop_ = reply.stop_string();
    return out;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  v1::ResponseOptions options_;
  v1::Stopping stopping_;
  uint32_t tokens_ = 0, stopped_at_ = 0;
  std::optional<std::string> stop_;
};

TEST_F(ReplyTest, TextIsTheDefault) {
  const v1::Delta delta = Show("naïve text, 日本");
  EXPECT_EQ(delta.text(), "naïve text, 日本");
  EXPECT_EQ(delta.token_ids_size(), 0);
  EXPECT_EQ(delta.log_probs_size(), 0);
  EXPECT_EQ(tokens_, Ids("naïve text, 日本").size());
}

TEST_F(ReplyTest, WhatIsAskedForIsShown) {
  options_.set_text(false);
  options_.set_token_ids(true);
  options_.set_log_probs(true);
  options_.set_top_log_probs(1);
  const v1::Delta delta = Show("some words here");
  EXPECT_EQ(delta.text(), "");
  ASSERT_EQ(delta.token_ids_size(), static_cast<int>(tokens_));
  ASSERT_EQ(delta.log_probs_size(), static_cast<int>(tokens_));
  ASSERT_EQ(delta.top_log_probs_size(), static_cast<int>(tokens_));
  EXPECT_EQ(delta.top_log_probs(0).token_ids(0), delta.token_ids(0));
}

TEST_F(ReplyTest, AStopStringEndsTheTextWhereverTokensEnd) {
  stopping_.add_stop("wor");
  EXPECT_EQ(Show("hello world again").text(), "hello ");
  EXPECT_EQ(stop_, "wor");
  EXPECT_EQ(stopped_at_, tokens_);
  EXPECT_LT(tokens_, Ids("hello world again").size());
}

TEST_F(ReplyTest, AStopStringMayEndInsideManyByteText) {
  stopping_.add_stop("本");
  EXPECT_EQ(Show("日本語").text(), "日");
}

TEST_F(ReplyTest, IncludeStopKeepsTheStopString) {
  stopping_.add_stop("wor");
  stopping_.set_include_stop(true);
  EXPECT_EQ(Show("hello world again").text(), "hello wor");
}

TEST_F(ReplyTest, IncludeStopKeepsTheTextOfTheStopToken) {
  const uint32_t stop = Ids("!").front();
  EXPECT_EQ(Show("hello", stop).text(), "hello");
  stopping_.set_include_stop(true);
  EXPECT_EQ(Show("hello", stop).text(), "hello!");
}

TEST_F(ReplyTest, StopStringsWaitForMinTokens) {
  const std::string text = "stop one stop two stop three";
  stopping_.add_stop("stop");
  stopping_.set_min_tokens(static_cast<uint32_t>(Ids("stop one").size()));
  EXPECT_EQ(Show(text).text(), "stop one ");
}

TEST_F(ReplyTest, SpecialTokensAreSkippedUnlessAskedFor) {
  const std::string text = "a<|im_end|>b";
  EXPECT_EQ(Show(text).text(), "ab");
  options_.set_skip_special_tokens(false);
  EXPECT_EQ(Show(text).text(), text);
}

}  // namespace
}  // namespace asynctls
