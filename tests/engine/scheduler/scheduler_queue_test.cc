// SPDX-License-Identifier: Apache-2.0
// The order of the queue: priorities, and the sequences of one request that wait for its first.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

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

Request WithPriority(const std::string& id, std::vector<uint32_t> prompt, int32_t priority) {
  Request request = MakeRequest(id, std::move(prompt), 2);
  request.priority = priority;
  return request;
}

// Ids in the order of their finish.
std::vector<std::string> Finishes(const SchedulerHarness& h) {
  std::vector<std::string> ids;
  for (const std::string& event : h.order()) {
    if (event.ends_with(":finished")) ids.push_back(event.substr(0, event.find(':')));
  }
  return ids;
}

// ------------------------------------------------------------------------------------- priority --

TEST(SchedulerQueue, HigherPriorityIsAdmittedFirstAndEqualOnesByArrival) {
  SchedulerConfig config = Small();
  config.max_lanes = 1;
  SchedulerHarness h(config);
  h.Add(MakeRequest("running", Prompt(4, 1), 5));
  h.Step();
  const std::pair<const char*, int32_t> asks[] = {
      {"a", 0}, {"b", -1}, {"c", 7}, {"d", 0}, {"e", 7}, {"f", INT32_MIN}, {"g", INT32_MAX}};
  for (const auto& [id, priority] : asks) h.Add(WithPriority(id, Prompt(4, 2), priority));
  EXPECT_EQ(h.metrics().waiting_by_priority[0]->Value(), 2);
  EXPECT_EQ(h.metrics().waiting_by_priority[1]->Value(), 2);
  EXPECT_EQ(h.metrics().waiting_by_priority[2]->Value(), 3);
  EXPECT_EQ(h.metrics().waiting_prompt_tokens.Value(), 7 * 4);
  h.Drain();
  EXPECT_THAT(Finishes(h), ElementsAre("running", "g", "c", "e", "a", "d", "b", "f"));
  for (const auto* gauge : h.metrics().waiting_by_priority) EXPECT_EQ(gauge->Value(), 0);
  EXPECT_EQ(h.metrics().waiting_prompt_tokens.Value(), 0);
}

TEST(SchedulerQueue, ABigRequestOfHighPriorityIsPassedByLowOnesABoundedNumberOfTimes) {
  SchedulerConfig config = Small();
  config.blocks = 20;
  config.max_overtakes = 2;
  SchedulerHarness h(config);
  h.Add(MakeRequest("running", Prompt(4, 1), 36));  // 10 blocks
  h.Step();
  Request big = MakeRequest("big", Prompt(4, 2), 60);  // 16 blocks
  big.priority = 5;
  h.Add(std::move(big));
  for (int i = 0; i < 6; ++i) h.Add(WithPriority(absl::StrCat("low", i), Prompt(4, 10 + i), -5));
  h.Drain();
  const std::vector<std::string> finishes = Finishes(h);
  EXPECT_THAT(std::vector(finishes.begin(), finishes.begin() + 3),
              ElementsAre("low0", "low1", "running"));
  EXPECT_EQ(finishes.size(), 8);
}

TEST(SchedulerQueue, WhoIsOvertakenOftenEnoughClosesTheQueueBehindItOnly) {
  SchedulerConfig config = Small();
  config.blocks = 20;
  config.max_overtakes = 1;
  SchedulerHarness h(config);
  h.Add(MakeRequest("running", Prompt(4, 1), 36));
  h.Step();
  h.Add(MakeRequest("big", Prompt(4, 2), 60));
  h.Add(WithPriority("first", Prompt(4, 3), 0));
  h.Add(WithPriority("second", Prompt(4, 4), 0));
  h.Step();
  EXPECT_EQ(h.scheduler().waiting(), 2) << "first passed, second may not";
  h.Add(WithPriority("urgent", Prompt(4, 5), 1));  // in front of big: nothing is overtaken
  h.Step();
  EXPECT_EQ(h.scheduler().waiting(), 2);
  EXPECT_EQ(h.told("urgent").tokens.size(), 1);
  EXPECT_TRUE(h.told("second").tokens.empty());
  h.Drain();
  EXPECT_EQ(Finishes(h).size(), 5);
}

// ------------------------------------------------------------------------------------ followers --

v1::SamplingParams Sampled(uint32_t index) {
  v1::SamplingParams sampling;
  sampling.set_temperature(1);
  sampling.set_seed(5);
  sampling.set_index(index);
  return sampling;
}

// x/0 and those that follow it.
void AddGroup(SchedulerHarness& h, const std::vector<uint32_t>& prompt, int n) {
  for (int i = 0; i < n; ++i) {
    Request request = MakeRequest(absl::StrCat("x/", i), prompt, 3);
    request.sampling = Sampled(static_cast<uint32_t>(i));
    if (i > 0) request.follows = "x/0";
    h.Add(std::move(request));
  }
}

void ExpectReplies(SchedulerHarness& h, const std::vector<uint32_t>& prompt, int first, int n) {
  for (int i = first; i < n; ++i) {
    const auto reply = ExpectedReply(prompt, 3, 1000, Sampled(static_cast<uint32_t>(i)));
    EXPECT_THAT(h.told(absl::StrCat("x/", i)).tokens, ElementsAreArray(reply)) << i;
  }
}

TEST(SchedulerQueue, FollowersFindThePromptOfTheirLeader) {
  SchedulerHarness h(Small());
  const std::vector<uint32_t> prompt = Prompt(60, 1);  // four steps
  AddGroup(h, prompt, 4);
  for (int step = 0; step < 3; ++step) {
    h.Step();
    EXPECT_EQ(h.scheduler().running(), 1);
    EXPECT_EQ(h.scheduler().waiting(), 3);
    EXPECT_EQ(h.metrics().requests_waiting.Value(), 3);
  }
  h.Drain();
  ExpectReplies(h, prompt, 0, 4);
  EXPECT_EQ(h.metrics().prompt_tokens_computed.Value(), 60 + 3 * 4) << "once, and a block each";
  EXPECT_EQ(h.metrics().prompt_tokens_cached.Value(), 3 * 56);
  EXPECT_EQ(h.told("x/3").finished->usage.cached_tokens, 56);
  EXPECT_NE(h.told("x/1").tokens, h.told("x/2").tokens);

  // The same asks one by one give the same tokens.
  for (int i = 0; i < 4; ++i) {
    SchedulerHarness alone(Small());
    Request request = MakeRequest("y", prompt, 3);
    request.sampling = Sampled(static_cast<uint32_t>(i));
    alone.Add(std::move(request));
    alone.Drain();
    EXPECT_EQ(alone.told("y").tokens, h.told(absl::StrCat("x/", i)).tokens);
  }
}

TEST(SchedulerQueue, FollowersNeedNoRoomForThePrompt) {
  SchedulerConfig config = Small();
  config.blocks = 20;  // 16 for the leader, 2 more for each follower
  SchedulerHarness h(config);
  AddGroup(h, Prompt(60, 1), 3);
  for (int step = 0; step < 5; ++step) h.Step();
  EXPECT_EQ(h.scheduler().running(), 3);
  h.Drain();
  ExpectReplies(h, Prompt(60, 1), 0, 3);
}

TEST(SchedulerQueue, WaitingFollowersAreInNobodysWay) {
  SchedulerConfig config = Small();
  config.max_overtakes = 0;
  SchedulerHarness h(config);
  AddGroup(h, Prompt(60, 1), 3);
  h.Add(MakeRequest("other", Prompt(4, 2), 1));
  h.Step();
  EXPECT_TRUE(h.told("other").finished.has_value());
  h.Drain();
  ExpectReplies(h, Prompt(60, 1), 0, 3);
}

TEST(SchedulerQueue, FollowersGoOnWhenTheirLeaderEnds) {
  for (const int steps : {0, 2, 3}) {  // in the queue, in prefill, with its last chunk in flight
    SCOPED_TRACE(steps);
    SchedulerHarness h(Small());
    if (steps == 0) {
      for (int i = 0; i < 4; ++i) h.Add(MakeRequest(absl::StrCat(i), Prompt(4, 5 + i), 3));
      h.Step();
    }
    const std::vector<uint32_t> prompt = Prompt(60, 1);
    AddGroup(h, prompt, 3);
    for (int step = 0; step < steps; ++step) h.Step();
    if (steps == 3) h.Plan();
    h.Cancel("x/0");
    EXPECT_EQ(h.scheduler().waiting(), 2);
    if (steps == 3) h.Commit();
    h.Drain();
    ExpectReplies(h, prompt, 1, 3);
    EXPECT_LE(h.metrics().prompt_tokens_computed.Value(), 60 + 4 + 4 * 4) << "not once more";
    EXPECT_EQ(h.scheduler().blocks().used(), 0);
  }
}

TEST(SchedulerQueue, AFollowerThatStillWaitsCanEnd) {
  const std::function<void(SchedulerHarness&)> ends[] = {
      [](SchedulerHarness& h) { h.Cancel("x/1"); },
      [](SchedulerHarness& h) {
        h.scheduler().CancelAll(absl::UnavailableError("drained"), h.now);
        h.Collect();
      },
      [](SchedulerHarness& h) {
        h.now += absl::Seconds(1000);
        h.Expire();
      }};
  for (const auto& end : ends) {
    SchedulerHarness h(Small());
    h.Add(MakeRequest("x/0", Prompt(60, 1), 3));
    Request follower = MakeRequest("x/1", Prompt(60, 1), 3);
    follower.follows = "x/0";
    follower.deadline = h.now + absl::Seconds(1000);
    h.Add(std::move(follower));
    h.Step();
    ASSERT_EQ(h.scheduler().waiting(), 1);
    end(h);
    ASSERT_TRUE(h.told("x/1").finished.has_value());
    EXPECT_EQ(h.told("x/1").finished->reason, FinishReason::kAborted);
    h.Drain();
    EXPECT_TRUE(h.told("x/0").finished.has_value());
    EXPECT_EQ(h.scheduler().waiting(), 0);
    EXPECT_EQ(h.metrics().requests_waiting.Value(), 0);
  }
}

TEST(SchedulerQueue, WhoFollowsNobodyThatIsStillReadingIsAdmittedAtOnce) {
  SchedulerHarness h(Small());
  h.Add(MakeRequest("x/0", Prompt(8, 1), 9));
  h.Step();  // has read its prompt
  for (const char* leader : {"x/0", "never heard of", "itself"}) {
    Request request =
        MakeRequest(leader == std::string("itself") ? "itself" : absl::StrCat("after ", leader),
                    Prompt(8, 1),
                    9);
    request.follows = leader;
    h.Add(std::move(request));
  }
  h.Plan();
  EXPECT_EQ(h.scheduler().running(), 4);
}

}  // namespace
}  // namespace asynctls
