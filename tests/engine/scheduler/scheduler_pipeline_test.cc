// SPDX-License-Identifier: Apache-2.0
// Two plans in flight: what may be planned before a result is known, what becomes of rows that
// turn out to be surplus, and how far prompts may delay those who decode.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "engine/scheduler/scheduler.h"
#include "tests/testing/scheduler_harness.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using testing::ExpectedReply;
using testing::MakeRequest;
using testing::Prompt;
using testing::SchedulerHarness;
using testing::Small;

SchedulerConfig Two() {
  SchedulerConfig config = Small();
  config.plans_in_flight = 2;
  return config;
}

// Rows of a plan, prompt ones and decode ones.
std::pair<uint32_t, uint32_t> Rows(const v1::StepPlan& plan) {
  uint32_t prompt = 0, decode = 0;
  for (const v1::LaneWork& work : plan.work()) (work.decode() ? decode : prompt) += work.count();
  return {prompt, decode};
}

TEST(SchedulerPipeline, PlansWhatDoesNotNeedTheResult) {
  SchedulerHarness h(Two());
  Request request = MakeRequest("a", Prompt(19, 1), 3);  // 16 rows, 1 row, 2 of tail
  request.tail = 2;
  h.Add(std::move(request));
  EXPECT_EQ(h.Plan().work(0).count(), 16);
  EXPECT_EQ(h.Plan().work(0).start(), 16);
  h.Commit();
  EXPECT_TRUE(h.Plan().work(0).decode());
  h.Commit();
  EXPECT_TRUE(h.Plan().work(0).sample());
  h.Commit();
  EXPECT_EQ(h.Plan().work(0).tokens_size(), 0) << "the token is on its way";
  h.Commit();
  EXPECT_THAT(h.told("a").tokens, ElementsAreArray(ExpectedReply(Prompt(19, 1), 1)));
  EXPECT_EQ(h.Plan().work(0).start(), 20);
  EXPECT_THAT(h.told("a").progress, ElementsAre(16, 17));
  h.Commit();
  EXPECT_TRUE(h.Plan().work().empty()) << "the last token is on its way";
  h.Commit();
  EXPECT_EQ(h.told("a").finished->reason, FinishReason::kLength);
  EXPECT_EQ(h.scheduler().blocks().used(), 0);
}

TEST(SchedulerPipeline, ARowBehindAStopIsSurplus) {
  SchedulerConfig config = Two();
  config.max_lanes = 1;
  SchedulerHarness h(config);
  const auto reply = ExpectedReply(Prompt(7, 1), 10);
  Request request = MakeRequest("a", Prompt(7, 1), 10);
  request.stop_tokens = {reply[1]};
  h.Add(std::move(request));
  h.Add(MakeRequest("b", Prompt(5, 2), 2));
  h.Fill();
  h.Commit();  // the first token
  h.Fill();
  h.Commit();  // the stop token; a row at position 8, in a block of its own, is in flight
  EXPECT_EQ(h.told("a").finished->reason, FinishReason::kStop);
  EXPECT_EQ(h.told("a").finished->usage.decode_steps, 1);
  EXPECT_EQ(h.told("a").finished->usage.kv_read.dense_tokens(), 8);
  EXPECT_EQ(h.scheduler().running(), 0);
  EXPECT_EQ(h.scheduler().blocks().used(), 3);
  EXPECT_TRUE(h.Plan().work().empty()) << "the only lane is not free yet";
  h.Commit();
  EXPECT_EQ(h.scheduler().blocks().used(), 0);
  EXPECT_THAT(h.told("a").tokens, ElementsAre(reply[0]));
  EXPECT_EQ(h.metrics().generation_tokens.Value(), 1);
  const v1::StepPlan& next = h.Plan();
  EXPECT_THAT(next.released_lanes(), ElementsAre(0));
  EXPECT_EQ(next.starts(0).lane(), 0);
  h.Drain();
  EXPECT_THAT(h.told("b").tokens, ElementsAreArray(ExpectedReply(Prompt(5, 2), 2)));
  EXPECT_EQ(h.scheduler().committed_steps(), 3 + 2);
}

TEST(SchedulerPipeline, WhatLengthEndsHasNoSurplusRows) {
  SchedulerHarness h(Two());
  for (uint32_t i = 0; i < 3; ++i) h.Add(MakeRequest(absl::StrCat(i), Prompt(4, i), 2 + i));
  EXPECT_EQ(h.Drain(), 4);
  EXPECT_EQ(h.metrics().step_rows_decode.Collect().histogram.sample_sum, 1 + 2 + 3);
}

TEST(SchedulerPipeline, TwinsAndFollowersTakeOverWhatTheLastPlanReads) {
  SchedulerHarness h(Two());
  h.Add(MakeRequest("leader", Prompt(15, 1), 3));
  Request follower = MakeRequest("follower", Prompt(15, 1), 3);
  follower.follows = "leader";
  h.Add(std::move(follower));
  h.Add(MakeRequest("twin", Prompt(15, 1), 3));
  EXPECT_EQ(h.Plan().work_size(), 1);
  const v1::StepPlan& plan = h.Plan();
  ASSERT_EQ(plan.work_size(), 3);
  EXPECT_EQ(plan.work(0).start(), 12);
  EXPECT_THAT(plan.work(0).new_blocks(), ElementsAre(0, 1, 2, 4));
  EXPECT_EQ(plan.work(1).start(), 12);
  h.Cancel("leader");  // with both plans in flight
  h.Drain();
  for (const char* id : {"follower", "twin"}) {
    EXPECT_THAT(h.told(id).tokens, ElementsAreArray(ExpectedReply(Prompt(15, 1), 3)));
    EXPECT_EQ(h.told(id).finished->usage.cached_tokens, 12);
  }
  EXPECT_EQ(h.scheduler().blocks().used(), 0);
}

TEST(SchedulerPipeline, ACancelWithTwoChunksInFlight) {
  SchedulerHarness h(Two());
  Request request = MakeRequest("a", Prompt(40, 1), 3);
  request.sampling.set_prompt_log_probs(true);
  h.Add(std::move(request));
  h.Fill();
  h.Cancel("a");
  EXPECT_EQ(h.told("a").finished->reason, FinishReason::kAborted);
  h.Commit();  // its log-probabilities come in order, to nobody
  EXPECT_GT(h.scheduler().blocks().used(), 0);
  h.Commit();
  EXPECT_THAT(h.told("a").prompt_log_probs, ElementsAre());
  EXPECT_EQ(h.scheduler().blocks().used(), 0);
  EXPECT_EQ(h.scheduler().blocks().cached(), 8);
  EXPECT_EQ(h.metrics().prompt_tokens_computed.Value(), 32);
}

TEST(SchedulerPipeline, AFailureForgetsBothPlans) {
  SchedulerHarness h(Two());
  for (uint32_t i = 0; i < 6; ++i) h.Add(MakeRequest(absl::StrCat(i), Prompt(20, i), 5));
  h.Fill();
  h.scheduler().FailAll(absl::UnavailableError("over"), h.now);
  h.Collect();
  for (const auto& [id, told] : h.all_told()) {
    ASSERT_TRUE(told.finished.has_value()) << id;
    EXPECT_EQ(told.finished->reason, FinishReason::kFailed);
  }
  EXPECT_EQ(h.scheduler().blocks().used(), 0);
}

TEST(SchedulerPipeline, ResultsComeInTheOrderOfThePlans) {
  SchedulerHarness h(Two());
  h.Add(MakeRequest("a", Prompt(4, 1), 5));
  h.Fill();
  v1::StepResult second;
  second.set_step(2);
  v1::SampledToken& token = *second.add_sampled();
  token.set_token(1);
  EXPECT_TRUE(absl::IsInternal(h.scheduler().Commit(second, h.now)));
}

TEST(SchedulerPipeline, AStepLastsFromTheOneBeforeIt) {
  SchedulerHarness h(Two());
  h.Add(MakeRequest("a", Prompt(4, 1), 5));
  EXPECT_EQ(h.Drain(), 5);  // of a second each
  EXPECT_EQ(h.metrics().step_seconds[0]->Collect().histogram.sample_sum +
                h.metrics().step_seconds[1]->Collect().histogram.sample_sum,
            5);
}

// ------------------------------------------------------------------------- prompts beside decodes

TEST(SchedulerPipeline, PromptRowsBesideDecodesAreBounded) {
  for (const uint32_t plans : {1u, 2u}) {
    SchedulerConfig config = Small();
    config.plans_in_flight = plans;
    config.max_mixed_tokens = 5;
    SchedulerHarness h(config);
    h.Add(MakeRequest("decodes", Prompt(4, 1), 9));
    h.Add(MakeRequest("reads", Prompt(52, 2), 2));
    EXPECT_EQ(Rows(h.Plan()), std::pair(16u, 0u)) << "nobody decodes yet";
    h.Commit();
    for (int i = 0; i < 8; ++i) {
      EXPECT_EQ(Rows(h.Plan()), std::pair(5u, 1u)) << i;
      h.Commit();
    }
    EXPECT_EQ(h.told("decodes").finished->reason, FinishReason::kLength);
    EXPECT_EQ(Rows(h.Plan()), std::pair(0u, 1u)) << "12 + 8 x 5 rows of 52 are read";
    h.Commit();
    EXPECT_THAT(h.told("reads").tokens, ElementsAreArray(ExpectedReply(Prompt(52, 2), 2)));
  }
}

TEST(SchedulerPipeline, EveryPromptGetsARowBesideDecodes) {
  SchedulerConfig config = Small();
  config.max_mixed_tokens = 1;
  SchedulerHarness h(config);
  h.Add(MakeRequest("decodes", Prompt(4, 1), 9));
  h.Step();
  for (uint32_t i = 0; i < 3; ++i) h.Add(MakeRequest(absl::StrCat(i), Prompt(8, 2 + i), 2));
  EXPECT_EQ(Rows(h.Plan()), std::pair(3u, 1u));
  h.Commit();
  h.Drain();
  EXPECT_EQ(h.told("2").finished->reason, FinishReason::kLength);
}

}  // namespace
}  // namespace asynctls
