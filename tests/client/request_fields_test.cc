// SPDX-License-Identifier: Apache-2.0
#include "client/request_fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(RequestFieldsTest, EveryFlagReachesItsField) {
  const auto flags = Flags::Parse(RequestFieldSpecs(),
                                  {"--mass=0.5",
                                   "--min-tokens=3",
                                   "--ignore-eos",
                                   "--stop=a",
                                   "--stop=b",
                                   "--stop-ids=7,8",
                                   "--include-stop",
                                   "--top-k=-1",
                                   "--top-p=0.25",
                                   "--min-p=0.125",
                                   "--presence-penalty=-2",
                                   "--frequency-penalty=1.5",
                                   "--repetition-penalty=1.25",
                                   "--logit-bias=5:-100,6:2.5",
                                   "--logit-bias=9:1",
                                   "--n=4",
                                   "--logprobs=2",
                                   "--prompt-logprobs=0",
                                   "--keep-special",
                                   "--priority=-5",
                                   "--cache-salt=s",
                                   "--request-id=r"});
  ASSERT_TRUE(flags.ok()) << flags.status();
  v1::GenerateRequest request;
  ASSERT_TRUE(SetRequestFields(*flags, request).ok());
  EXPECT_FLOAT_EQ(request.sparse().top_p(), 0.5f);
  EXPECT_EQ(request.stopping().min_tokens(), 3u);
  EXPECT_TRUE(request.stopping().ignore_eos());
  EXPECT_THAT(request.stopping().stop(), ElementsAre("a", "b"));
  EXPECT_THAT(request.stopping().stop_token_ids(), ElementsAre(7, 8));
  EXPECT_TRUE(request.stopping().include_stop());
  EXPECT_EQ(request.sampling().top_k(), -1);
  EXPECT_FLOAT_EQ(request.sampling().top_p(), 0.25f);
  EXPECT_FLOAT_EQ(request.sampling().min_p(), 0.125f);
  EXPECT_FLOAT_EQ(request.sampling().presence_penalty(), -2);
  EXPECT_FLOAT_EQ(request.sampling().frequency_penalty(), 1.5f);
  EXPECT_FLOAT_EQ(request.sampling().repetition_penalty(), 1.25f);
  EXPECT_EQ(request.sampling().logit_bias().size(), 3u);
  EXPECT_FLOAT_EQ(request.sampling().logit_bias().at(6), 2.5f);
  EXPECT_EQ(request.sampling().n(), 4u);
  EXPECT_TRUE(request.response().log_probs());
  EXPECT_EQ(request.response().top_log_probs(), 2u);
  EXPECT_TRUE(request.response().has_prompt_log_probs());
  EXPECT_FALSE(request.response().skip_special_tokens());
  EXPECT_EQ(request.priority(), -5);
  EXPECT_EQ(request.cache_salt(), "s");
  EXPECT_EQ(request.request_id(), "r");
}

TEST(RequestFieldsTest, WhatIsNotGivenStaysAbsent) {
  v1::GenerateRequest request;
  ASSERT_TRUE(SetRequestFields(*Flags::Parse(RequestFieldSpecs(), {}), request).ok());
  EXPECT_EQ(request.ByteSizeLong(), 0u);
}

TEST(RequestFieldsTest, SwitchesGoOnAndOff) {
  v1::GenerateRequest request;
  ASSERT_TRUE(SetRequestField("ignore-eos", "on", request).ok());
  EXPECT_TRUE(request.stopping().ignore_eos());
  ASSERT_TRUE(SetRequestField("ignore-eos", "off", request).ok());
  EXPECT_FALSE(request.stopping().ignore_eos());
}

TEST(RequestFieldsTest, ErrorsNameFieldAndValue) {
  v1::GenerateRequest request;
  for (const auto& [name, value] :
       std::vector<std::pair<std::string, std::string>>{{"mode", "fast"},
                                                        {"selector", "x"},
                                                        {"budget", "-1"},
                                                        {"temperature", "warm"},
                                                        {"seed", "x"},
                                                        {"logit-bias", "5"},
                                                        {"logit-bias", "x:1"},
                                                        {"stop-ids", "1,x"},
                                                        {"ignore-eos", "maybe"},
                                                        {"priority", "high"},
                                                        {"logprobs", "all"}}) {
    const absl::Status status = SetRequestField(name, value, request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(name + ": '"));
  }
  EXPECT_EQ(SetRequestField("speed", "1", request).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace asynctls
