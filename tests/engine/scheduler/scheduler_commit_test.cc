// SPDX-License-Identifier: Apache-2.0
// What requests are told after a step, and how they end: stop, cancel and deadline in every phase,
// failure, wrong results.
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
using testing::ExpectedReply;
using testing::MakeRequest;
using testing::Prompt;
using testing::SchedulerHarness;
using testing::Small;

TEST(SchedulerCommit, StopTokenEndsTheReplyAndIsNoPartOfIt) {
  const auto reply = ExpectedReply(Prompt(5, 1), 10);
  SchedulerHarness h(Small());
  Request request = MakeRequest("a", Prompt(5, 1), 10);
  request.stop_tokens = {5000, reply[3]};
  h.Add(std::move(request));
  EXPECT_EQ(h.Drain(), 4);
  EXPECT_THAT(h.told("a").tokens, ElementsAre(reply[0], reply[1], reply[2]));
  EXPECT_EQ(h.told("a").finished->reason, FinishReason::kStop);
  EXPECT_EQ(h.told("a").finished->stop_token, reply[3]);
  EXPECT_EQ(h.told("a").finished->usage.completion_tokens, 3);
  EXPECT_EQ(h.metrics().generation_tokens.Value(), 3);
}

// Each phase is one request's state when it is ended: in the queue, between and during the steps of
// its prefill, its tail and its decode.
struct Phase {
  const char* name;
  int steps;       // committed before
  bool in_flight;  // ended while the next step runs
  bool waiting;
};
std::ostream& operator<<(std::ostream& out, const Phase& phase) { return out << phase.name; }

class EndInEveryPhase : public ::testing::TestWithParam<Phase> {
 protected:
  // A request of 32 prefill tokens (two steps), 2 of tail, 10 of reply.
  void Reach(absl::Time deadline) {
    const Phase& phase = GetParam();
    if (phase.waiting) {
      for (int i = 0; i < 4; ++i) h.Add(MakeRequest(absl::StrCat(i), Prompt(4, i), 30));
      h.Step();
    }
    Request request = MakeRequest("x", Prompt(34, 9), 10);
    request.tail = 2;
    request.deadline = deadline;
    h.Add(std::move(request));
    if (!phase.waiting) {
      for (int i = 0; i < phase.steps; ++i) ASSERT_TRUE(h.Step());
    }
    if (phase.in_flight) h.Plan();
  }
  void ExpectEnded(absl::StatusCode code) {
    ASSERT_TRUE(h.told("x").finished.has_value());
    const TokenEvent::Finished& finished = *h.told("x").finished;
    EXPECT_EQ(finished.reason, FinishReason::kAborted);
    EXPECT_EQ(finished.status.code(), code);
    EXPECT_EQ(finished.usage.completion_tokens, h.told("x").tokens.size());
    if (GetParam().in_flight) h.Commit();  // what is written now belongs to nobody
    EXPECT_EQ(h.scheduler().running(), GetParam().waiting ? 4 : 0);
    EXPECT_EQ(h.scheduler().blocks().used() == 0, !GetParam().waiting);
    // A new request may take lane and blocks at once.
    h.Add(MakeRequest("y", Prompt(34, 10), 3));
    h.Drain();
    EXPECT_THAT(h.told("y").tokens, ElementsAreArray(ExpectedReply(Prompt(34, 10), 3)));
    EXPECT_EQ(h.scheduler().blocks().used(), 0);
    EXPECT_EQ(h.metrics().requests_running.Value(), 0);
    EXPECT_EQ(h.metrics().requests_waiting.Value(), 0);
    h.scheduler().blocks().CheckInvariants();
  }

  SchedulerHarness h{Small()};
};

TEST_P(EndInEveryPhase, Cancel) {
  Reach(absl::InfiniteFuture());
  h.Cancel("x");
  h.Cancel("x");
  h.Cancel("never heard of");
  ExpectEnded(absl::StatusCode::kCancelled);
  EXPECT_EQ(h.metrics().finished(Outcome::kAborted).Value(), 1);
}

TEST_P(EndInEveryPhase, Deadline) {
  const absl::Time deadline = h.now + absl::Seconds(100);
  Reach(deadline);
  EXPECT_EQ(h.scheduler().NextDeadline(), deadline);
  h.Expire();
  EXPECT_FALSE(h.told("x").finished.has_value());
  h.now = deadline;
  h.Expire();
  EXPECT_EQ(h.scheduler().NextDeadline(), absl::InfiniteFuture());
  ExpectEnded(absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(h.metrics().finished(Outcome::kDeadline).Value(), 1);
}

INSTANTIATE_TEST_SUITE_P(Phases,
                         EndInEveryPhase,
                         ::testing::Values(Phase{"queue", 0, false, true},
                                           Phase{"queue_in_flight", 0, true, true},
                                           Phase{"first_chunk", 0, true, false},
                                           Phase{"prefill", 1, false, false},
                                           Phase{"prefill_in_flight", 1, true, false},
                                           Phase{"tail", 3, false, false},
                                           Phase{"tail_in_flight", 2, true, false},
                                           Phase{"decode", 6, false, false},
                                           Phase{"decode_in_flight", 6, true, false}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(SchedulerCommit, CancelAllAndFailAllTellEverybodyOnce) {
  for (const bool fail : {false, true}) {
    SchedulerHarness h(Small());
    for (int i = 0; i < 6; ++i) h.Add(MakeRequest(absl::StrCat(i), Prompt(20, i), 5));
    h.Step();
    h.Plan();
    const absl::Status why = absl::UnavailableError("over");
    fail ? h.scheduler().FailAll(why, h.now) : h.scheduler().CancelAll(why, h.now);
    h.Collect();
    for (const auto& [id, told] : h.all_told()) {
      ASSERT_TRUE(told.finished.has_value()) << id;
      EXPECT_EQ(told.finished->reason, fail ? FinishReason::kFailed : FinishReason::kAborted);
      EXPECT_EQ(told.finished->status, why);
    }
    if (!fail) h.Commit();
    EXPECT_EQ(h.scheduler().blocks().used(), 0);
    EXPECT_TRUE(h.Plan().work().empty());
  }
}

TEST(SchedulerCommit, AResultThatAnswersAnotherPlanIsRefused) {
  SchedulerHarness h(Small());
  h.Add(MakeRequest("a", Prompt(4, 1), 5));
  h.Plan();
  const auto refused = [&](const std::string& text) {
    v1::StepResult result;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &result));
    return absl::IsInternal(h.scheduler().Commit(result, h.now));
  };
  EXPECT_TRUE(refused("step: 2 sampled { lane: 0 token: 1 }"));
  EXPECT_TRUE(refused("step: 1"));
  EXPECT_TRUE(refused("step: 1 sampled { lane: 1 token: 1 }"));
  EXPECT_TRUE(refused("step: 1 sampled { lane: 0 token: 1000 }"));
  EXPECT_TRUE(refused("step: 1 sampled { lane: 0 token: 1 } sampled { lane: 0 token: 2 }"));
  EXPECT_TRUE(refused("step: 1 sampled { lane: 0 token: 1 } reads { lane: 0 mode: 1 }"));
  EXPECT_FALSE(refused("step: 1 sampled { lane: 0 token: 1 }"));
}

TEST(SchedulerCommit, ClocksOfARequest) {
  SchedulerConfig config = Small();
  config.max_lanes = 1;
  SchedulerHarness h(config);
  h.Add(MakeRequest("a", Prompt(4, 1), 3));   // three steps of one second
  h.Add(MakeRequest("b", Prompt(20, 2), 3));  // two of prefill, then two
  h.Drain();
  EXPECT_EQ(h.told("b").finished->queue, absl::Seconds(3));
  EXPECT_EQ(h.told("b").finished->prefill, absl::Seconds(2));
  EXPECT_EQ(h.told("b").finished->decode, absl::Seconds(2));
  const auto count = [](prometheus::Histogram& histogram) {
    return histogram.Collect().histogram.sample_count;
  };
  EXPECT_EQ(count(h.metrics().time_to_first_token), 2);
  EXPECT_EQ(count(h.metrics().inter_token_latency), 4);
  EXPECT_EQ(count(h.metrics().e2e_latency), 2);
  EXPECT_EQ(h.metrics().time_to_first_token.Collect().histogram.sample_sum, 1 + 5);
  EXPECT_EQ(h.metrics().e2e_latency.Collect().histogram.sample_sum, 3 + 7);
  EXPECT_EQ(count(*h.metrics().step_seconds[0]) + count(*h.metrics().step_seconds[1]), 7);
}

}  // namespace
}  // namespace asynctls
