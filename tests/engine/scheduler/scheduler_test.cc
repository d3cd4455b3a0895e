// SPDX-License-Identifier: Apache-2.0
// The rules of admission, sharing and planning, one by one, on plans and on what requests are told.
#include "engine/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/testing/scheduler_harness.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using testing::ExpectedReply;
using ::testing::HasSubstr;
using testing::MakeRequest;
using testing::Prompt;
using testing::SchedulerHarness;
using testing::Small;

void ExpectPlan(const v1::StepPlan& plan, const std::string& text) {
  v1::StepPlan expected;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &expected)) << text;
  EXPECT_EQ(plan.DebugString(), expected.DebugString());
}

// Rows of each lane in a plan: {lane, start, count}.
std::vector<std::array<uint32_t, 3>> Rows(const v1::StepPlan& plan) {
  std::vector<std::array<uint32_t, 3>> rows;
  for (const v1::LaneWork& work : plan.work()) {
    rows.push_back({work.lane(), work.start(), work.count()});
  }
  return rows;
}

TEST(Scheduler, RanksLearnTheIdsOfThePromptWhereARepetitionPenaltyNeedsThem) {
  SchedulerHarness h(Small());
  for (const float penalty : {0.0f, 1.0f, 1.2f}) {
    Request request = MakeRequest(absl::StrCat("r", penalty), {5, 2, 5, 3, 2, 2}, 1);
    request.sampling.set_repetition_penalty(penalty);
    request.cache_salt = request.id;  // else the later ones wait for the first one's block
    h.Add(std::move(request));
  }
  const v1::StepPlan& plan = h.Plan();
  ASSERT_EQ(plan.starts_size(), 3);
  EXPECT_THAT(plan.starts(0).prompt_ids(), ElementsAre());
  EXPECT_THAT(plan.starts(1).prompt_ids(), ElementsAre());
  EXPECT_THAT(plan.starts(2).prompt_ids(), ElementsAre(5, 2, 3));
}

TEST(Scheduler, PlansOfOneRequest) {
  SchedulerHarness h(Small());
  Request request = MakeRequest("a", {1, 2, 3, 4, 5, 6}, 2);
  request.sampling.set_seed(9);
  request.sparse.set_mode(v1::ATTENTION_MODE_EXACT);
  request.sparse.set_budget(3);
  h.Add(std::move(request));
  ExpectPlan(h.Plan(), R"pb(
    step: 1
    starts {
      lane: 0
      sampling { seed: 9 }
      sparse { mode: ATTENTION_MODE_EXACT budget: 3 }
    }
    work {
      lane: 0
      new_blocks: 0
      new_blocks: 1
      start: 0
      count: 6
      sample: true
      tokens: 1
      tokens: 2
      tokens: 3
      tokens: 4
      tokens: 5
      tokens: 6
    })pb");
  h.Commit();
  ExpectPlan(h.Plan(), R"pb(
    step: 2
    work { lane: 0 start: 6 count: 1 decode: true sample: true })pb");
  h.Commit();
  EXPECT_TRUE(h.Plan().work().empty());
  EXPECT_THAT(h.told("a").tokens, ElementsAreArray(ExpectedReply({1, 2, 3, 4, 5, 6}, 2)));
  EXPECT_THAT(h.told("a").progress, ElementsAre());
  EXPECT_THAT(h.order(), ElementsAre("a:token", "a:token", "a:finished"));
  const TokenEvent::Finished& finished = *h.told("a").finished;
  EXPECT_EQ(finished.reason, FinishReason::kLength);
  EXPECT_EQ(finished.usage.decode_steps, 1);
  EXPECT_EQ(finished.usage.kv_read.tokens(), 3);
  EXPECT_EQ(finished.usage.kv_read.dense_tokens(), 7);
  EXPECT_EQ(h.metrics().kv_reads[1].tokens->Value(), 3);
  EXPECT_EQ(h.metrics().kv_reads[1].dense_bytes->Value(), 7 * 16);
  EXPECT_EQ(finished.queue, absl::ZeroDuration());
  EXPECT_EQ(finished.prefill, absl::Seconds(1));
  EXPECT_EQ(finished.decode, absl::Seconds(1));
  // The lane is released with the next plan that has work, and may start again in it.
  h.Add(MakeRequest("b", {7}, 1));
  ExpectPlan(h.Plan(), R"pb(
    step: 3
    released_lanes: 0
    starts {
      lane: 0
      sampling {}
      sparse {}
    }
    work { lane: 0 new_blocks: 1 start: 0 count: 1 sample: true tokens: 7 })pb");
}

TEST(Scheduler, TailGoesThroughTheDecodePathRowByRow) {
  SchedulerHarness h(Small());
  Request request = MakeRequest("a", {1, 2, 3, 4, 5, 6}, 2);
  request.tail = 2;
  h.Add(std::move(request));
  ExpectPlan(h.Plan(), R"pb(
    step: 1
    starts {
      lane: 0
      sampling {}
      sparse {}
    }
    work { lane: 0 new_blocks: 0 start: 0 count: 4 tokens: 1 tokens: 2 tokens: 3 tokens: 4 })pb");
  h.Commit();
  ExpectPlan(h.Plan(), R"pb(
    step: 2
    work { lane: 0 new_blocks: 1 start: 4 count: 1 tokens: 5 decode: true })pb");
  h.Commit();
  ExpectPlan(h.Plan(), R"pb(
    step: 3
    work { lane: 0 start: 5 count: 1 tokens: 6 decode: true sample: true })pb");
  h.Commit();
  ExpectPlan(h.Plan(), R"pb(
    step: 4
    work { lane: 0 start: 6 count: 1 decode: true sample: true })pb");
  h.Commit();
  EXPECT_THAT(h.told("a").tokens, ElementsAreArray(ExpectedReply({1, 2, 3, 4, 5, 6}, 2)));
  EXPECT_THAT(h.told("a").progress, ElementsAre(4));
  EXPECT_EQ(h.told("a").finished->usage.decode_steps, 3);
  EXPECT_EQ(h.metrics().prompt_tokens_computed.Value(), 6);
}

TEST(Scheduler, TailLongerThanThePromptIsTheWholePrompt) {
  SchedulerHarness h(Small());
  Request request = MakeRequest("a", {1, 2, 3}, 1);
  request.tail = 1000;
  h.Add(std::move(request));
  EXPECT_EQ(h.Drain(), 3);
  EXPECT_THAT(h.told("a").tokens, ElementsAreArray(ExpectedReply({1, 2, 3}, 1)));
}

TEST(Scheduler, ChecksNameTheNumbers) {
  const SchedulerConfig config = Small();
  const auto message = [&](Request request) {
    const absl::Status status = Scheduler::Check(config, request);
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    return std::string(status.message());
  };
  EXPECT_THAT(message(MakeRequest("a", {}, 1)), HasSubstr("no tokens"));
  EXPECT_THAT(message(MakeRequest("a", {1}, 0)), HasSubstr("max_tokens"));
  EXPECT_THAT(message(MakeRequest("a", {1, 1000}, 1)),
              HasSubstr("id 1000 at position 1, the vocabulary has 1000"));
  EXPECT_THAT(message(MakeRequest("a", Prompt(200, 1), 57)),
              HasSubstr("200 + 57 = 257 tokens, the context holds 256"));
  EXPECT_THAT(message(MakeRequest("a", {1}, UINT32_MAX)), HasSubstr("= 4294967296 tokens"));
  SchedulerConfig tight = config;
  tight.blocks = 10;
  EXPECT_THAT(std::string(Scheduler::Check(tight, MakeRequest("a", Prompt(20, 1), 21)).message()),
              HasSubstr("need 11 KV blocks of 4, the server has 10"));
  EXPECT_TRUE(Scheduler::Check(tight, MakeRequest("a", Prompt(20, 1), 20)).ok());
}

// ------------------------------------------------------------------------------------- fairness --

TEST(Scheduler, ShortPromptIsNotBlockedBehindALongOneAndTheLongOneProgresses) {
  SchedulerHarness h(Small());
  h.Add(MakeRequest("long", Prompt(200, 1), 2));
  EXPECT_THAT(Rows(h.Plan()), ElementsAre(std::array{0u, 0u, 16u}));
  h.Commit();
  h.Add(MakeRequest("short", Prompt(10, 2), 2));
  EXPECT_THAT(Rows(h.Plan()), ElementsAre(std::array{0u, 16u, 8u}, std::array{1u, 0u, 8u}));
  h.Commit();
  // The short one needs 2 rows only: the rest of its share goes to the long one.
  EXPECT_THAT(Rows(h.Plan()), ElementsAre(std::array{0u, 24u, 14u}, std::array{1u, 8u, 2u}));
  h.Commit();
  EXPECT_EQ(h.told("short").tokens.size(), 1);
  // A decode row comes first out of the budget, and last in the order of rows.
  EXPECT_THAT(Rows(h.Plan()), ElementsAre(std::array{0u, 38u, 15u}, std::array{1u, 10u, 1u}));
  h.Commit();
  EXPECT_THAT(h.told("long").progress, ElementsAre(16, 24, 38, 53));
  EXPECT_TRUE(h.told("short").finished.has_value());
  h.Drain();
  EXPECT_THAT(h.told("long").tokens, ElementsAreArray(ExpectedReply(Prompt(200, 1), 2)));
}

TEST(Scheduler, EveryLaneGetsARowHoweverSmallTheStep) {
  SchedulerConfig config = Small();
  config.max_step_tokens = 3;  // fewer than lanes: one lane less is used
  SchedulerHarness h(config);
  for (int i = 0; i < 4; ++i) h.Add(MakeRequest(absl::StrCat(i), Prompt(8, i), 30));
  for (int step = 0; step < 20; ++step) {
    EXPECT_EQ(h.Plan().work_size(), 3);
    h.Commit();
  }
  EXPECT_EQ(h.scheduler().running(), 3);
  EXPECT_EQ(h.scheduler().waiting(), 1);
}

// ------------------------------------------------------------------------------------ admission --

TEST(Scheduler, AdmitsByFullLengthSoThatNobodyRunsOutOfBlocks) {
  SchedulerConfig config = Small();
  config.blocks = 10;
  SchedulerHarness h(config);
  h.Add(MakeRequest("a", Prompt(4, 1), 16));  // 5 blocks in the end, 1 now
  h.Add(MakeRequest("b", Prompt(4, 2), 20));  // 6: does not fit beside a
  h.Add(MakeRequest("c", Prompt(4, 3), 16));  // 5: does
  h.Plan();
  EXPECT_EQ(h.scheduler().running(), 2);
  EXPECT_EQ(h.scheduler().blocks().used(), 2);
  EXPECT_EQ(h.scheduler().reserved(), 8);
  EXPECT_EQ(h.metrics().kv_usage_ratio.Value(), 1.0);
  h.Commit();
  h.Drain();
  for (const char* id : {"a", "b", "c"}) EXPECT_TRUE(h.told(id).finished->status.ok());
}

TEST(Scheduler, AWaitingRequestIsOvertakenABoundedNumberOfTimes) {
  SchedulerConfig config = Small();
  config.blocks = 20;
  config.max_overtakes = 3;
  SchedulerHarness h(config);
  h.Add(MakeRequest("running", Prompt(4, 1), 36));  // 10 blocks
  h.Step();
  h.Add(MakeRequest("big", Prompt(4, 2), 60));  // 16 blocks
  int admitted = 0;
  for (int i = 0; i < 8; ++i) {
    h.Add(MakeRequest(absl::StrCat("small", i), Prompt(4, 10 + i), 1));  // one step each
    h.Step();
    admitted += h.told(absl::StrCat("small", i)).finished.has_value();
  }
  EXPECT_EQ(admitted, 3);
  EXPECT_EQ(h.scheduler().waiting(), 6);
  h.Drain();
  std::vector<std::string> finished;
  for (const std::string& event : h.order()) {
    if (event.ends_with(":finished")) finished.push_back(event);
  }
  EXPECT_EQ(finished[3], "running:finished");
  for (const auto& [id, told] : h.all_told()) EXPECT_TRUE(told.finished.has_value()) << id;
}

TEST(Scheduler, HeldPrefixBlocksCostNothingAtAdmission) {
  SchedulerConfig config = Small();
  config.blocks = 12;
  SchedulerHarness h(config);
  h.Add(MakeRequest("a", Prompt(16, 1), 20));  // 9 blocks, 4 of prompt
  h.Step();
  h.Add(MakeRequest("twin", Prompt(16, 1), 4));   // 5 blocks, 3 of them held by a
  h.Add(MakeRequest("other", Prompt(16, 2), 4));  // 5 blocks: 3 - 2 left are too few
  h.Step();
  EXPECT_EQ(h.scheduler().running(), 2);
  EXPECT_EQ(h.scheduler().waiting(), 1);
  h.Drain();
  EXPECT_EQ(h.told("twin").finished->usage.cached_tokens, 12);
  EXPECT_THAT(h.told("twin").tokens, ElementsAreArray(ExpectedReply(Prompt(16, 1), 4)));
}

// ------------------------------------------------------------------------------- prefix sharing --

TEST(Scheduler, AHitLeavesAtLeastOneTokenAndTheTailToCompute) {
  SchedulerHarness h(Small());
  h.Add(MakeRequest("first", Prompt(16, 1), 1));
  h.Drain();
  EXPECT_EQ(h.scheduler().blocks().cached(), 4);
  h.Add(MakeRequest("same", Prompt(16, 1), 1));
  h.Drain();
  EXPECT_EQ(h.told("same").finished->usage.cached_tokens, 12);
  Request tail = MakeRequest("tail", Prompt(16, 1), 1);
  tail.tail = 6;
  h.Add(std::move(tail));
  h.Drain();
  EXPECT_EQ(h.told("tail").finished->usage.cached_tokens, 8);
  h.Add(MakeRequest("longer", Prompt(17, 1), 1));
  h.Drain();
  EXPECT_EQ(h.told("longer").finished->usage.cached_tokens, 16);
  EXPECT_EQ(h.metrics().prefix_cache_hits_tokens.Value(), 12 + 8 + 16);
  EXPECT_EQ(h.metrics().prefix_cache_queries_tokens.Value(), 16 * 3 + 17);
  EXPECT_EQ(h.metrics().prompt_tokens_computed.Value(), 16 + 4 + 8 + 1);
}

TEST(Scheduler, BlocksOfTailAndReplyAreNotReused) {
  SchedulerHarness h(Small());
  Request request = MakeRequest("tail", Prompt(16, 1), 8);
  request.tail = 6;  // prefill ends at 10: two whole blocks
  h.Add(std::move(request));
  h.Drain();
  EXPECT_EQ(h.scheduler().blocks().cached(), 2);
  std::vector<uint32_t> next = Prompt(16, 1);
  for (uint32_t token : h.told("tail").tokens) next.push_back(token);
  h.Add(MakeRequest("next turn", next, 1));
  h.Drain();
  EXPECT_EQ(h.told("next turn").finished->usage.cached_tokens, 8);
}

TEST(Scheduler, SaltsKeepPrefixesApart) {
  SchedulerHarness h(Small());
  for (const char* salt : {"", "x", "y", "x"}) {
    Request request = MakeRequest(absl::StrCat("r", h.all_told().size()), Prompt(16, 1), 1);
    request.cache_salt = salt;
    h.Add(std::move(request));
    h.Drain();
  }
  EXPECT_EQ(h.told("r0").finished->usage.cached_tokens, 0);
  EXPECT_EQ(h.told("r1").finished->usage.cached_tokens, 0);
  EXPECT_EQ(h.told("r2").finished->usage.cached_tokens, 0);
  EXPECT_EQ(h.told("r3").finished->usage.cached_tokens, 12);
}

TEST(Scheduler, OneOfTwoLivePrefixesIsComputedAndTheOtherTakesItOver) {
  SchedulerHarness h(Small());
  std::vector<uint32_t> longer = Prompt(40, 1);
  longer.resize(44, 7);  // the same 40 tokens, then others
  h.Add(MakeRequest("older", Prompt(40, 1), 2));
  h.Add(MakeRequest("younger", longer, 2));
  EXPECT_THAT(Rows(h.Plan()), ElementsAre(std::array{0u, 0u, 16u}));
  h.Commit();
  EXPECT_THAT(Rows(h.Plan()), ElementsAre(std::array{0u, 16u, 16u}));
  h.Commit();
  EXPECT_THAT(Rows(h.Plan()), ElementsAre(std::array{0u, 32u, 8u}));
  h.Commit();
  EXPECT_THAT(Rows(h.Plan()), ElementsAre(std::array{1u, 40u, 4u}, std::array{0u, 40u, 1u}));
  EXPECT_EQ(h.scheduler().blocks().used(), 12);  // 10 shared, one more each
  h.Commit();
  h.Drain();
  EXPECT_THAT(h.told("younger").tokens, ElementsAreArray(ExpectedReply(longer, 2)));
  EXPECT_EQ(h.told("younger").finished->usage.cached_tokens, 40);
  EXPECT_EQ(h.metrics().prompt_tokens_computed.Value(), 44);
}

TEST(Scheduler, TheYoungerGoesOnByItselfWhenTheOlderIsCancelled) {
  SchedulerHarness h(Small());
  h.Add(MakeRequest("older", Prompt(40, 1), 2));
  h.Add(MakeRequest("younger", Prompt(40, 1), 2));
  h.Step();
  h.Plan();
  h.Cancel("older");
  h.Commit();
  EXPECT_THAT(Rows(h.Plan()), ElementsAre(std::array{1u, 32u, 8u}));
  h.Commit();
  h.Drain();
  EXPECT_EQ(h.told("younger").finished->usage.cached_tokens, 32);
  EXPECT_THAT(h.told("younger").tokens, ElementsAreArray(ExpectedReply(Prompt(40, 1), 2)));
}

TEST(Scheduler, TheLeastRecentlyUsedPrefixIsEvictedFromItsEnd) {
  SchedulerConfig config = Small();
  config.blocks = 12;
  SchedulerHarness h(config);
  h.Add(MakeRequest("a", Prompt(16, 1), 1));  // leaves 4 cached blocks
  h.Drain();
  h.Add(MakeRequest("b", Prompt(16, 2), 1));  // 4 more
  h.Drain();
  h.Add(MakeRequest("a again", Prompt(17, 1), 1));  // a is now more recent than b
  h.Drain();
  EXPECT_EQ(h.scheduler().blocks().cached(), 8);
  h.Add(MakeRequest("c", Prompt(23, 3), 1));  // 6 blocks: 4 free, 2 from the end of b
  h.Drain();
  h.Add(MakeRequest("b again", Prompt(17, 2), 1));
  h.Step();
  EXPECT_EQ(h.told("b again").finished->usage.cached_tokens, 8);
  // Of the three new blocks b needed one was free and two came from the end of a, now the oldest.
  h.Add(MakeRequest("a third", Prompt(17, 1), 1));
  h.Drain();
  EXPECT_EQ(h.told("a third").finished->usage.cached_tokens, 8);
  h.scheduler().blocks().CheckInvariants();
}

}  // namespace
}  // namespace asynctls
