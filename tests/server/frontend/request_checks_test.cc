// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/request_checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "server/config.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ServingLimits Limits() {
  ServingLimits limits;
  limits.model.set_temperature(0.6f);
  limits.model.set_top_p(0.95f);
  limits.model.set_top_k(20);
  limits.model.set_do_sample(true);
  limits.model.add_eos_token_ids(7);
  limits.model.add_eos_token_ids(8);
  limits.vocab = 1000;
  limits.sparse = DefaultConfig().sparse();
  limits.max_positions = 10000;
  limits.max_budget = 4096;
  return limits;
}

v1::GenerateRequest Valid() {
  v1::GenerateRequest request;
  for (uint32_t id = 0; id < 100; ++id) request.mutable_token_ids()->add_ids(id);
  return request;
}

// Both steps, as the service does them.
absl::StatusOr<Request> Resolve(const v1::GenerateRequest& request,
                                const ServingLimits& limits = Limits()) {
  absl::StatusOr<Request> out = ResolveRequest(request, limits);
  if (!out.ok()) return out;
  const auto& ids = request.token_ids().ids();
  const absl::Status prompt = ResolvePrompt(request, limits, {ids.begin(), ids.end()}, *out);
  if (!prompt.ok()) return prompt;
  return out;
}

TEST(ResolveTest, AbsentFieldsComeFromModelAndServer) {
  const auto request = Resolve(Valid());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_FLOAT_EQ(request->sampling.temperature(), 0.6f);
  EXPECT_FLOAT_EQ(request->sampling.top_p(), 0.95f);
  EXPECT_EQ(request->sampling.top_k(), 20);
  EXPECT_FLOAT_EQ(request->sampling.min_p(), 0);
  EXPECT_EQ(request->sparse.mode(), v1::ATTENTION_MODE_EXACT);
  EXPECT_EQ(request->sparse.budget(), 1024u);
  EXPECT_EQ(request->sparse.blocks(), 64u);
  EXPECT_EQ(request->max_tokens, kDefaultMaxTokens);
  EXPECT_EQ(request->prompt.size(), 100u);
  EXPECT_THAT(request->stop_tokens, ElementsAre(7, 8));
}

TEST(ResolveTest, AModelThatDoesNotSampleIsGreedyUnlessAsked) {
  ServingLimits limits = Limits();
  limits.model.set_do_sample(false);
  EXPECT_FLOAT_EQ(Resolve(Valid(), limits)->sampling.temperature(), 0);
  v1::GenerateRequest request = Valid();
  request.mutable_sampling()->set_temperature(0.5f);
  EXPECT_FLOAT_EQ(Resolve(request, limits)->sampling.temperature(), 0.5f);
}

TEST(ResolveTest, AModelThatSaysNothingSamplesPlainly) {
  ServingLimits limits = Limits();
  limits.model = v1::ModelInfo();
  const auto request = Resolve(Valid(), limits);
  EXPECT_FLOAT_EQ(request->sampling.temperature(), 1);
  EXPECT_FLOAT_EQ(request->sampling.top_p(), 1);
  EXPECT_EQ(request->sampling.top_k(), 0);
}

TEST(ResolveTest, WhatTheRequestSaysWins) {
  v1::GenerateRequest request = Valid();
  request.set_request_id("id");
  request.set_cache_salt("salt");
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_top_k(-1);
  request.mutable_sampling()->set_top_p(1);
  request.mutable_sampling()->set_min_p(0.1f);
  request.mutable_sampling()->set_seed(9);
  request.mutable_sparse()->set_mode(v1::ATTENTION_MODE_DENSE);
  request.mutable_sparse()->set_budget(128);
  request.mutable_sparse()->set_blocks(4);
  request.mutable_sparse()->set_tail(99);
  request.mutable_stopping()->set_max_tokens(9900);
  request.mutable_stopping()->add_stop_token_ids(3);
  const auto out = Resolve(request);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->id, "id");
  EXPECT_EQ(out->cache_salt, "salt");
  EXPECT_EQ(out->sampling.top_k(), 0);
  EXPECT_EQ(out->sampling.seed(), 9u);
  EXPECT_EQ(out->sparse.mode(), v1::ATTENTION_MODE_DENSE);
  EXPECT_EQ(out->sparse.budget(), 128u);
  EXPECT_EQ(out->sparse.blocks(), 4u);
  EXPECT_EQ(out->tail, 99u);
  EXPECT_EQ(out->max_tokens, 9900u);
  EXPECT_THAT(out->stop_tokens, ElementsAre(7, 8, 3));
}

TEST(ResolveTest, VerySmallTemperaturesAreGreedy) {
  for (float temperature : {-0.0f, 1e-40f, 9e-6f}) {
    v1::GenerateRequest request = Valid();
    request.mutable_sampling()->set_temperature(temperature);
    EXPECT_EQ(Resolve(request)->sampling.temperature(), 0);
  }
}

TEST(ResolveTest, MaxTokensAbsentIsWhatFits) {
  v1::GenerateRequest request = Valid();
  request.mutable_token_ids()->mutable_ids()->Resize(9999, 1);
  EXPECT_EQ(Resolve(request)->max_tokens, 1u);
}

struct Bad {
  const char* message;
  std::function<void(v1::GenerateRequest&)> spoil;
};

TEST(ResolveTest, EveryBoundIsCheckedAndNamed) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const std::vector<Bad> cases = {
      {"request_id has 129 bytes; the limit is 128",
       [](auto& r) { r.set_request_id(std::string(129, 'x')); }},
      {"request_id must be printable", [](auto& r) { r.set_request_id("a\nb"); }},
      {"request_id must be printable", [](auto& r) { r.set_request_id(std::string(1, '\0')); }},
      {"request_id must be printable", [](auto& r) { r.set_request_id("\xc3\xa9"); }},
      {"cache_salt has 257 bytes", [](auto& r) { r.set_cache_salt(std::string(257, 'x')); }},
      {"one of text, token_ids and chat is required", [](auto& r) { r.clear_prompt(); }},
      {"text is empty", [](auto& r) { r.set_text(""); }},
      {"token_ids.ids is empty", [](auto& r) { r.mutable_token_ids()->clear_ids(); }},
      {"token_ids.ids[100] is 1000; ids end at 999",
       [](auto& r) { r.mutable_token_ids()->add_ids(1000); }},
      {"token_ids.ids[0] is 4294967295",
       [](auto& r) { r.mutable_token_ids()->set_ids(0, UINT32_MAX); }},
      {"chat.messages is empty", [](auto& r) { r.mutable_chat(); }},
      {"chat.messages[0].role must be", [](auto& r) { r.mutable_chat()->add_messages(); }},
      {"chat.messages has 4097 messages; the limit is 4096",
       [](auto& r) {
         for (int i = 0; i < 4097; ++i) r.mutable_chat()->add_messages()->set_role("user");
       }},
      {"the prompt has 10000 tokens; the limit is 9999",
       [](auto& r) { r.mutable_token_ids()->mutable_ids()->Resize(10000, 1); }},
      {"sampling.temperature nan is outside 0 to 100",
       [](auto& r) { r.mutable_sampling()->set_temperature(NAN); }},
      {"sampling.temperature inf", [](auto& r) { r.mutable_sampling()->set_temperature(kInf); }},
      {"sampling.temperature -1", [](auto& r) { r.mutable_sampling()->set_temperature(-1); }},
      {"sampling.temperature 1e+38", [](auto& r) { r.mutable_sampling()->set_temperature(1e38f); }},
      {"sampling.top_k -2", [](auto& r) { r.mutable_sampling()->set_top_k(-2); }},
      {"sampling.top_p nan", [](auto& r) { r.mutable_sampling()->set_top_p(NAN); }},
      {"sampling.top_p must be more than 0", [](auto& r) { r.mutable_sampling()->set_top_p(0); }},
      {"sampling.top_p 1.5", [](auto& r) { r.mutable_sampling()->set_top_p(1.5f); }},
      {"sampling.min_p 2", [](auto& r) { r.mutable_sampling()->set_min_p(2); }},
      {"sampling.min_p nan", [](auto& r) { r.mutable_sampling()->set_min_p(NAN); }},
      {"sparse.mode 9 is unknown",
       [](auto& r) { r.mutable_sparse()->set_mode(static_cast<v1::AttentionMode>(9)); }},
      {"sparse.selector 9 is unknown",
       [](auto& r) { r.mutable_sparse()->set_selector(static_cast<v1::Selector>(9)); }},
      {"sparse.selector bound is off",
       [](auto& r) { r.mutable_sparse()->set_selector(v1::SELECTOR_BOUND); }},
      {"sparse.budget 127 is outside 128 to 4096",
       [](auto& r) { r.mutable_sparse()->set_budget(127); }},
      {"sparse.budget 0", [](auto& r) { r.mutable_sparse()->set_budget(0); }},
      {"sparse.budget 4097", [](auto& r) { r.mutable_sparse()->set_budget(4097); }},
      {"sparse.blocks 3 is below 4", [](auto& r) { r.mutable_sparse()->set_blocks(3); }},
      {"sparse.top_p nan", [](auto& r) { r.mutable_sparse()->set_top_p(NAN); }},
      {"sparse.tail 4097 is more than 4096", [](auto& r) { r.mutable_sparse()->set_tail(4097); }},
      {"sparse.tail 100 must be less than the prompt's 100 tokens",
       [](auto& r) { r.mutable_sparse()->set_tail(100); }},
      {"stopping.max_tokens must be at least 1",
       [](auto& r) { r.mutable_stopping()->set_max_tokens(0); }},
      {"stopping.max_tokens 9901 with a prompt of 100 tokens is over the limit of 10000",
       [](auto& r) { r.mutable_stopping()->set_max_tokens(9901); }},
      {"stopping.max_tokens 4294967295",
       [](auto& r) { r.mutable_stopping()->set_max_tokens(UINT32_MAX); }},
      {"stopping.stop has 17 strings; the limit is 16",
       [](auto& r) {
         for (int i = 0; i < 17; ++i) r.mutable_stopping()->add_stop("x");
       }},
      {"stopping.stop holds an empty string", [](auto& r) { r.mutable_stopping()->add_stop(""); }},
      {"stopping.stop holds a string of 257 bytes",
       [](auto& r) { r.mutable_stopping()->add_stop(std::string(257, 'x')); }},
      {"stopping.stop_token_ids[0] is 1000",
       [](auto& r) { r.mutable_stopping()->add_stop_token_ids(1000); }},
      {"stopping.stop_token_ids has 129 ids",
       [](auto& r) { r.mutable_stopping()->mutable_stop_token_ids()->Resize(129, 1); }},
  };
  for (const Bad& bad : cases) {
    v1::GenerateRequest request = Valid();
    bad.spoil(request);
    const auto resolved = Resolve(request);
    EXPECT_EQ(resolved.status().code(), absl::StatusCode::kInvalidArgument) << bad.message;
    EXPECT_THAT(std::string(resolved.status().message()), HasSubstr(bad.message));
  }
}

TEST(ResolveTest, TheLimitsThemselvesAreAllowed) {
  v1::GenerateRequest request = Valid();
  request.set_request_id(std::string(128, '~'));
  request.mutable_sampling()->set_temperature(100);
  request.mutable_sampling()->set_top_k(INT32_MAX);
  request.mutable_sampling()->set_min_p(1);
  request.mutable_sampling()->set_seed(UINT64_MAX);
  request.mutable_sparse()->set_budget(4096);
  request.mutable_sparse()->set_blocks(UINT32_MAX);
  request.mutable_sparse()->set_selector(v1::SELECTOR_BOUND);
  for (int i = 0; i < 16; ++i) request.mutable_stopping()->add_stop(std::string(256, 'x'));
  ServingLimits limits = Limits();
  limits.bound_selector = true;
  const auto out = Resolve(request, limits);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->sparse.selector(), v1::SELECTOR_BOUND);
}

TEST(PromptBytesTest, CountsWhatWaits) {
  EXPECT_EQ(PromptBytes(Valid()), 400);
  v1::GenerateRequest request;
  request.set_text("abc");
  EXPECT_EQ(PromptBytes(request), 3);
  request.mutable_chat()->add_messages()->set_content("abcd");
  request.mutable_chat()->add_messages()->set_content("ef");
  EXPECT_EQ(PromptBytes(request), 6);
}

}  // namespace
}  // namespace asynctls
