// SPDX-License-Identifier: Apache-2.0
// What else is reported: likeliest ids, the prompt's log-probabilities, block heat, the table of
// live requests, and how long lane and blocks of a cancelled request are held.
#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "engine/scheduler/scheduler.h"
#include "tests/testing/scheduler_harness.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using testing::ExpectedPromptLogProbs;
using testing::ExpectedReply;
using testing::MakeRequest;
using testing::Prompt;
using testing::SchedulerHarness;
using ::testing::SizeIs;
using testing::Small;

// ---------------------------------------------------------------------------- log-probabilities --

TEST(SchedulerReport, LikeliestIdsGoWithEachToken) {
  SchedulerHarness h(Small());
  Request request = MakeRequest("a", Prompt(5, 1), 3);
  request.sampling.set_top_log_probs(2);
  h.Add(std::move(request));
  h.Add(MakeRequest("b", Prompt(5, 2), 3));
  h.Drain();
  ASSERT_THAT(h.told("a").top, SizeIs(3));
  for (int i = 0; i < 3; ++i) {
    const uint32_t token = h.told("a").tokens[i];
    EXPECT_THAT(h.told("a").top[i].ids(), ElementsAre(token, (token + 1) % 1000));
    EXPECT_THAT(h.told("a").top[i].log_probs(), ElementsAre(-0.5f, -1.5f));
    EXPECT_EQ(h.told("b").top[i].ids_size(), 0);
  }
}

TEST(SchedulerReport, EachPromptPositionIsToldOnceInOrder) {
  for (const uint32_t tail : {0u, 5u, 50u}) {
    for (const uint32_t size : {1u, 2u, 16u, 17u, 50u}) {
      SCOPED_TRACE(absl::StrCat("tail ", tail, " size ", size));
      SchedulerHarness h(Small());
      h.Add(MakeRequest("same prompt", Prompt(size, 1), 1));
      h.Drain();
      Request request = MakeRequest("a", Prompt(size, 1), 2);
      request.sampling.set_prompt_log_probs(true);
      request.sampling.set_prompt_top_log_probs(1);
      request.tail = tail;
      h.Add(std::move(request));
      h.Drain();
      EXPECT_THAT(h.told("a").prompt_log_probs,
                  ElementsAreArray(ExpectedPromptLogProbs(Prompt(size, 1))));
      ASSERT_THAT(h.told("a").prompt_top, SizeIs(size - 1));
      for (uint32_t i = 1; i < size; ++i) {
        EXPECT_THAT(h.told("a").prompt_top[i - 1].ids(), ElementsAre(Prompt(size, 1)[i]));
      }
      EXPECT_THAT(h.told("a").tokens, ElementsAreArray(ExpectedReply(Prompt(size, 1), 2)));
      EXPECT_EQ(h.told("a").finished->usage.cached_tokens, 0);
    }
  }
}

TEST(SchedulerReport, RanksAreToldTheIdsTheyCannotSee) {
  SchedulerHarness h(Small());
  std::vector<uint32_t> prompt = Prompt(20, 1);
  prompt[3] = prompt[7] = prompt[0];
  h.Add(MakeRequest("leaves a prefix", prompt, 1));
  h.Drain();
  Request request = MakeRequest("a", prompt, 1);
  request.sampling.set_repetition_penalty(1.5f);
  h.Add(std::move(request));
  const v1::StepPlan& plan = h.Plan();
  EXPECT_THAT(plan.starts(0).prompt_ids(), SizeIs(18));
  EXPECT_EQ(plan.work(0).start(), 16);
  EXPECT_FALSE(plan.work(0).has_next_token());
  h.Commit();
}

TEST(SchedulerReport, PromptLogProbsTakeNoPrefixButLeaveOne) {
  SchedulerHarness h(Small());
  const auto ask = [&](const std::string& id, bool log_probs) {
    Request request = MakeRequest(id, Prompt(40, 1), 1);
    request.sampling.set_prompt_log_probs(log_probs);
    h.Add(std::move(request));
  };
  ask("older", false);  // computes what the next one may not take over
  ask("reads itself", true);
  h.Drain();
  ask("finds", false);
  h.Drain();
  EXPECT_EQ(h.told("reads itself").finished->usage.cached_tokens, 0);
  EXPECT_EQ(h.told("finds").finished->usage.cached_tokens, 36);
  EXPECT_EQ(h.metrics().prefix_cache_queries_tokens.Value(), 80) << "of those that may look";
  EXPECT_EQ(h.metrics().prompt_tokens_computed.Value(), 40 + 40 + 4);
  EXPECT_EQ(h.scheduler().blocks().cached(), 10);

  SchedulerHarness fresh(Small());
  Request request = MakeRequest("a", Prompt(40, 1), 1);
  request.sampling.set_prompt_log_probs(true);
  fresh.Add(std::move(request));
  fresh.Add(MakeRequest("twin", Prompt(40, 1), 1));
  fresh.Drain();
  EXPECT_EQ(fresh.told("twin").finished->usage.cached_tokens, 36);
}

TEST(SchedulerReport, WrongReportsAreRefused) {
  SchedulerConfig config = Small();
  config.max_step_tokens = 8;
  SchedulerHarness h(config);
  Request request = MakeRequest("a", Prompt(9, 1), 5);
  request.sampling.set_prompt_log_probs(true);
  h.Add(std::move(request));
  h.Plan();  // rows 0 to 7 of 9
  const auto refused = [&](const std::string& text) {
    v1::StepResult result;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &result));
    return absl::IsInternal(h.scheduler().Commit(result, h.now));
  };
  EXPECT_TRUE(refused("step: 1 prompt_tokens { lane: 1 start: 1 log_probs: -1 }"));
  EXPECT_TRUE(refused("step: 1 prompt_tokens { lane: 0 start: 0 log_probs: -1 }"));
  EXPECT_TRUE(refused("step: 1 prompt_tokens { lane: 0 start: 2 log_probs: -1 }"));
  EXPECT_TRUE(refused("step: 1 prompt_tokens { lane: 0 start: 1 }"));
  EXPECT_TRUE(
      refused("step: 1 prompt_tokens { lane: 0 start: 1 log_probs: -1 } "
              "prompt_tokens { lane: 0 start: 1 log_probs: -1 }"));
  EXPECT_TRUE(
      refused("step: 1 prompt_tokens { lane: 0 start: 1 "
              "log_probs: [-1, -1, -1, -1, -1, -1, -1, -1, -1] }"));
  EXPECT_TRUE(
      refused("step: 1 prompt_tokens { lane: 0 start: 1 log_probs: [-1, -1] "
              "top { ids: 1 log_probs: -1 } }"));
  EXPECT_TRUE(
      refused("step: 1 prompt_tokens { lane: 0 start: 1 log_probs: -1 "
              "top { ids: 1000 log_probs: -1 } }"));
  EXPECT_TRUE(refused("step: 1 prompt_tokens { lane: 0 start: 1 log_probs: -1 top { ids: 1 } }"));
  // What a row says of the token behind it may come with the next step.
  EXPECT_FALSE(
      refused("step: 1 prompt_tokens { lane: 0 start: 1 log_probs: [-1, -1] } "
              "prompt_tokens { lane: 0 start: 3 log_probs: [-1, -1, -1, -1, -1] }"));
  h.Plan();  // row 8, the last
  const std::string token = "step: 2 sampled { lane: 0 token: 1 } ";
  EXPECT_TRUE(refused(token)) << "position 8 is missing";
  EXPECT_TRUE(
      refused("step: 2 sampled { lane: 0 token: 1 top { ids: 1000 log_probs: -1 } } "
              "prompt_tokens { lane: 0 start: 8 log_probs: -1 }"));
  EXPECT_FALSE(refused(token + "prompt_tokens { lane: 0 start: 8 log_probs: -1 }"));
  h.Plan();
  EXPECT_TRUE(
      refused("step: 3 sampled { lane: 0 token: 1 } "
              "prompt_tokens { lane: 0 start: 9 log_probs: -1 }"));
  EXPECT_TRUE(
      refused("step: 3 sampled { lane: 0 token: 1 } "
              "reads { lane: 0 mode: 1 block_heat: \"a\" }"))
      << "nobody asked for it";
  EXPECT_FALSE(refused("step: 3 sampled { lane: 0 token: 1 }"));
  h.Plan(/*report_blocks=*/true);  // three blocks
  EXPECT_TRUE(
      refused("step: 4 sampled { lane: 0 token: 1 } "
              "reads { lane: 0 mode: 1 block_heat: \"abcd\" }"));
  EXPECT_FALSE(
      refused("step: 4 sampled { lane: 0 token: 1 } "
              "reads { lane: 0 mode: 1 block_heat: \"abc\" }"));
}

// ---------------------------------------------------------------------------------------- table --

TEST(SchedulerReport, TableOfLiveRequests) {
  SchedulerConfig config = Small();
  config.max_lanes = 2;
  SchedulerHarness h(config);
  h.Add(MakeRequest("cached", Prompt(8, 1), 1));
  h.Drain();
  Request decoding = MakeRequest("decoding", Prompt(10, 1), 9);
  decoding.sparse.set_mode(v1::ATTENTION_MODE_EXACT);
  decoding.sparse.set_budget(5);
  decoding.priority = 3;
  h.Add(std::move(decoding));
  h.Step();
  h.Step();
  h.Add(MakeRequest("reading", Prompt(40, 2), 9));
  h.Add(MakeRequest("waiting", Prompt(7, 3), 9));
  EXPECT_TRUE(h.Plan(/*report_blocks=*/true).report_blocks());
  h.Commit();
  EXPECT_FALSE(h.Plan().report_blocks());
  h.Commit();
  const std::vector<RequestStatus> table = h.scheduler().Statuses(h.now);
  ASSERT_THAT(table, SizeIs(3));
  EXPECT_EQ(table[0].id, "decoding");
  EXPECT_EQ(table[0].phase, RequestPhase::kDecode);
  EXPECT_EQ(table[0].priority, 3);
  EXPECT_EQ(table[0].prompt, 10);
  EXPECT_EQ(table[0].cached, 8);
  EXPECT_EQ(table[0].computed, 13);
  EXPECT_EQ(table[0].generated, 4);
  EXPECT_EQ(table[0].blocks, 4);
  EXPECT_EQ(table[0].age, absl::Seconds(4));
  EXPECT_EQ(table[0].mode, v1::ATTENTION_MODE_EXACT);
  EXPECT_EQ(table[0].budget, 5);
  EXPECT_EQ(table[0].block_heat, std::string("\0\xff\xff", 3)) << "of the step that was asked";
  EXPECT_EQ(table[1].id, "reading");
  EXPECT_EQ(table[1].phase, RequestPhase::kPrefill);
  EXPECT_EQ(table[1].computed, 30);
  EXPECT_EQ(table[1].generated, 0);
  EXPECT_EQ(table[1].block_heat, "");
  EXPECT_EQ(table[2].id, "waiting");
  EXPECT_EQ(table[2].phase, RequestPhase::kWaiting);
  EXPECT_EQ(table[2].blocks, 0);
  EXPECT_EQ(table[2].age, absl::Seconds(2));
  h.Plan();
  h.Cancel("decoding");
  EXPECT_THAT(h.scheduler().Statuses(h.now), SizeIs(2)) << "one that has ended is not live";
  h.Commit();
}

// ----------------------------------------------------------------------------------- cancel ->
// free

TEST(SchedulerReport, BlocksOfACancelledRequestAreFreeWithinTwoSteps) {
  struct Case {
    const char* name;
    int steps;       // committed before
    bool in_flight;  // cancelled while the next step runs
  };
  for (const auto& [name, steps, in_flight] : {Case{"queue", 0, false},
                                               Case{"prefill", 1, false},
                                               Case{"prefill in flight", 1, true},
                                               Case{"decode", 5, false},
                                               Case{"decode in flight", 5, true}}) {
    SCOPED_TRACE(name);
    SchedulerHarness h(Small());
    h.Add(MakeRequest("x", Prompt(40, 1), 20));
    for (int i = 0; i < steps; ++i) h.Step();
    if (in_flight) h.Plan();
    const absl::Time asked = h.now;
    h.now += absl::Milliseconds(250);  // on the way to the engine thread
    h.scheduler().Cancel("x", absl::CancelledError("enough"), asked, h.now);
    h.Collect();
    ASSERT_TRUE(h.told("x").finished.has_value());
    EXPECT_EQ(h.scheduler().blocks().used() > 0, in_flight);
    if (in_flight) h.Commit();
    EXPECT_EQ(h.scheduler().blocks().used(), 0);
    const auto held = h.metrics().cancel_to_free.Collect().histogram;
    EXPECT_EQ(held.sample_count, 1);
    EXPECT_EQ(held.sample_sum, in_flight ? 1.25 : 0.25);
  }
}

TEST(SchedulerReport, ACancelWithOkIsAStop) {
  SchedulerHarness h(Small());
  h.Add(MakeRequest("x", Prompt(4, 1), 20));
  h.Step();
  h.scheduler().Cancel("x", absl::OkStatus(), h.now, h.now);
  h.Collect();
  EXPECT_EQ(h.told("x").finished->reason, FinishReason::kStop);
  EXPECT_TRUE(h.told("x").finished->status.ok());
  EXPECT_EQ(h.metrics().finished(Outcome::kStop).Value(), 1);
  EXPECT_EQ(h.metrics().finished(Outcome::kAborted).Value(), 0);
  EXPECT_EQ(h.metrics().cancel_to_free.Collect().histogram.sample_count, 1);
}

TEST(SchedulerReport, OnlyAbortedRequestsCountAsHeldAfterACancel) {
  SchedulerHarness h(Small());
  h.Add(MakeRequest("ends", Prompt(4, 1), 2));
  h.Drain();
  EXPECT_EQ(h.metrics().cancel_to_free.Collect().histogram.sample_count, 0);
  Request late = MakeRequest("late", Prompt(4, 2), 2);
  late.deadline = h.now + absl::Seconds(1);
  h.Add(std::move(late));
  h.now += absl::Seconds(3);
  h.Expire();
  const auto held = h.metrics().cancel_to_free.Collect().histogram;
  EXPECT_EQ(held.sample_count, 1);
  EXPECT_EQ(held.sample_sum, 2);
}

}  // namespace
}  // namespace asynctls
