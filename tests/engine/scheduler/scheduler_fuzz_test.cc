// SPDX-License-Identifier: Apache-2.0
// Random arrivals, cancels and deadlines over thousands of steps; the invariants of
// engine/README.md are checked after every one, FakeModel checks every plan, and every reply is
// compared.
#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"
#include "tests/testing/scheduler_harness.h"

namespace asynctls {
namespace {

using testing::ExpectedReply;
using testing::SchedulerHarness;
using testing::Told;

class SchedulerFuzz : public ::testing::TestWithParam<int> {
 protected:
  SchedulerFuzz() : random_(GetParam()), harness_(MakeConfig()) {}

  uint32_t Below(uint32_t limit) { return limit == 0 ? 0 : random_() % limit; }

  SchedulerConfig MakeConfig() {
    config_.block_positions = 1 + Below(8);
    config_.blocks = 10 + Below(60);
    config_.max_context = 200;
    config_.vocab_size = 1000;
    config_.max_lanes = 1 + Below(10);
    config_.max_step_tokens = 1 + Below(40);
    config_.max_overtakes = Below(5);
    return config_;
  }

  // Prompts with shared beginnings: a common stem cut at a random place, then an own end.
  void AddRandom() {
    Request request;
    request.id = absl::StrCat("r", added_++);
    const uint32_t stem = Below(3), cut = Below(60), own = 1 + Below(30);
    for (uint32_t i = 0; i < cut; ++i) request.prompt.push_back(stem * 300 + i);
    const uint32_t end = Below(4);
    for (uint32_t i = 0; i < own; ++i) request.prompt.push_back(900 + (end + i) % 100);
    request.max_tokens = 1 + Below(25);
    if (Below(3) == 0) request.tail = Below(20);
    if (Below(4) == 0) request.cache_salt = "salt";
    if (Below(5) == 0) request.deadline = harness_.now + absl::Seconds(Below(30));
    if (Below(3) == 0) {
      const auto reply = ExpectedReply(request.prompt, request.max_tokens);
      request.stop_tokens.push_back(reply[Below(static_cast<uint32_t>(reply.size()))]);
    }
    if (!Scheduler::Check(config_, request).ok()) return;
    Ask ask = {request.prompt, request.stop_tokens, request.max_tokens};
    asks_[request.id] = std::move(ask);
    harness_.Add(std::move(request));
  }

  void CancelRandom() { harness_.Cancel(absl::StrCat("r", Below(added_ + 1))); }

  void CheckInvariants() {
    const BlockAllocator& blocks = harness_.scheduler().blocks();
    blocks.CheckInvariants();  // free + cached + used == total among them
    ASSERT_LE(harness_.scheduler().reserved(), blocks.available()) << "promised blocks exist";
    int finished = 0;
    for (const auto& [id, told] : harness_.all_told()) finished += told.finished.has_value();
    Metrics& metrics = harness_.metrics();
    ASSERT_EQ(metrics.requests_started.Value(), asks_.size());
    ASSERT_EQ(metrics.requests_running.Value(), harness_.scheduler().running());
    ASSERT_EQ(metrics.requests_waiting.Value(), harness_.scheduler().waiting());
    ASSERT_EQ(finished + harness_.scheduler().running() + harness_.scheduler().waiting(),
              static_cast<int>(asks_.size()));
    ASSERT_EQ(harness_.scheduler().left_queue_requests(),
              asks_.size() - static_cast<size_t>(harness_.scheduler().waiting()));
  }

  void CheckReply(const std::string& id, const Told& told) {
    ASSERT_TRUE(told.finished.has_value()) << id;
    const Ask& ask = asks_[id];
    std::vector<uint32_t> expected = ExpectedReply(ask.prompt, ask.max_tokens);
    const auto stop =
        std::find_first_of(expected.begin(), expected.end(), ask.stops.begin(), ask.stops.end());
    const bool stops = stop != expected.end();
    expected.erase(stop, expected.end());
    ASSERT_EQ(told.finished->usage.completion_tokens, told.tokens.size());
    if (told.finished->reason == FinishReason::kAborted) {
      ASSERT_LE(told.tokens.size(), expected.size());
      expected.resize(told.tokens.size());
    } else {
      ASSERT_EQ(told.finished->reason, stops ? FinishReason::kStop : FinishReason::kLength) << id;
    }
    ASSERT_EQ(told.tokens, expected) << id;
  }

  struct Ask {
    std::vector<uint32_t> prompt, stops;
    uint32_t max_tokens;
  };

  std::mt19937 random_;
  SchedulerConfig config_;
  SchedulerHarness harness_;
  std::map<std::string, Ask> asks_;
  uint32_t added_ = 0;
};

TEST_P(SchedulerFuzz, InvariantsHoldAndNothingLeaks) {
  for (int step = 0; step < 400; ++step) {
    for (uint32_t i = Below(3); i > 0; --i) AddRandom();
    if (Below(4) == 0) CancelRandom();
    harness_.Expire();
    if (!harness_.Plan().work().empty()) {
      // The engine handles messages while the step is in flight.
      if (Below(3) == 0) AddRandom();
      if (Below(4) == 0) CancelRandom();
      if (Below(4) == 0) harness_.Expire();
      harness_.Commit();
    } else {
      harness_.now += absl::Seconds(1);
    }
    ASSERT_NO_FATAL_FAILURE(CheckInvariants());
    if (HasFailure()) return;
  }
  harness_.Drain();
  ASSERT_NO_FATAL_FAILURE(CheckInvariants());
  EXPECT_EQ(harness_.scheduler().running() + harness_.scheduler().waiting(), 0);
  EXPECT_EQ(harness_.scheduler().blocks().used(), 0);
  for (const auto& [id, told] : harness_.all_told()) {
    ASSERT_NO_FATAL_FAILURE(CheckReply(id, told));
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerFuzz, ::testing::Range(0, 30));

}  // namespace
}  // namespace asynctls
