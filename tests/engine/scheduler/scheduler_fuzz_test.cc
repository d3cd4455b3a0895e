// SPDX-License-Identifier: Apache-2.0
// Random arrivals, cancels and deadlines over thousands of steps; the invariants of
// engine/README.md are checked after every one, FakeModel checks every plan, and every reply is
// compared.
#include <gtest/gtest.h>

#include <random>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "tests/testing/scheduler_harness.h"

namespace asynctls {
namespace {

using testing::ExpectedPromptLogProbs;
using testing::ExpectedReply;
using testing::SchedulerHarness;
using testing::Told;

// A seed, and how many plans may be in flight.
class SchedulerFuzz : public ::testing::TestWithParam<std::tuple<int, uint32_t>> {
 protected:
  SchedulerFuzz() : random_(std::get<0>(GetParam())), harness_(MakeConfig()) {}

  uint32_t Below(uint32_t limit) { return limit == 0 ? 0 : random_() % limit; }

  SchedulerConfig MakeConfig() {
    config_.block_positions = 1 + Below(8);
    config_.blocks = 10 + Below(60);
    config_.max_context = 200;
    config_.vocab_size = 1000;
    config_.max_lanes = 1 + Below(10);
    config_.max_step_tokens = 1 + Below(40);
    config_.max_overtakes = Below(5);
    config_.max_mixed_tokens = Below(2) * (1 + Below(20));
    config_.plans_in_flight = std::get<1>(GetParam());
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
    if (Below(3) == 0) request.priority = static_cast<int32_t>(Below(5)) - 2;
    if (Below(6) == 0) request.sampling.set_prompt_log_probs(true);
    if (Below(6) == 0) request.sampling.set_repetition_penalty(1.5f);
    if (!Scheduler::Check(config_, request).ok()) return;
    const uint32_t sequences = Below(4) == 0 ? 1 + Below(4) : 1;
    const std::string leader = request.id;
    for (uint32_t index = 0; index < sequences; ++index) {
      Request one = Copy(request);
      one.id = index == 0 ? leader : absl::StrCat("r", added_++);
      if (index > 0) one.follows = leader;
      if (index > 0 && Below(4) == 0) one.deadline = harness_.now + absl::Seconds(Below(30));
      one.sampling.set_temperature(1);
      one.sampling.set_index(index);
      asks_[one.id] = {one.prompt, one.stop_tokens, one.max_tokens, one.tail, one.sampling};
      harness_.Add(std::move(one));
    }
  }

  static Request Copy(const Request& request) {
    Request copy;
    copy.prompt = request.prompt;
    copy.max_tokens = request.max_tokens;
    copy.sampling = request.sampling;
    copy.stop_tokens = request.stop_tokens;
    copy.tail = request.tail;
    copy.cache_salt = request.cache_salt;
    copy.priority = request.priority;
    copy.deadline = request.deadline;
    return copy;
  }

  void CancelRandom() { harness_.Cancel(absl::StrCat("r", Below(added_ + 1))); }

  void CheckInvariants() {
    const BlockAllocator& blocks = harness_.scheduler().blocks();
    blocks.CheckInvariants();  // free + cached + used == total among them
    ASSERT_LE(harness_.scheduler().reserved(), blocks.available()) << "promised blocks exist";
    int finished = 0;
    for (const auto& [id, told] : harness_.all_told()) finished += told.finished.has_value();
    Metrics& metrics = harness_.metrics();
    CheckMetrics(metrics);
    ASSERT_EQ(metrics.requests_started.Value(), asks_.size());
    ASSERT_EQ(metrics.requests_running.Value(), harness_.scheduler().running());
    ASSERT_EQ(metrics.requests_waiting.Value(), harness_.scheduler().waiting());
    ASSERT_EQ(finished + harness_.scheduler().running() + harness_.scheduler().waiting(),
              static_cast<int>(asks_.size()));
    ASSERT_EQ(harness_.scheduler().left_queue_requests(),
              asks_.size() - static_cast<size_t>(harness_.scheduler().waiting()));
  }

  // What the metrics say is what the requests were told.
  void CheckMetrics(Metrics& metrics) {
    uint64_t replied = 0, tokens = 0, finished = 0, several = 0, aborted = 0;
    for (const auto& [id, told] : harness_.all_told()) {
      replied += !told.tokens.empty();
      tokens += told.tokens.size();
      finished += told.finished.has_value();
      several += told.finished.has_value() && told.tokens.size() > 1;
      aborted += told.finished.has_value() && told.finished->reason == FinishReason::kAborted;
    }
    ASSERT_EQ(Samples(metrics.time_to_first_token), replied);
    ASSERT_EQ(Samples(metrics.prefill_time), replied);
    ASSERT_EQ(Samples(metrics.inter_token_latency), tokens - replied);
    ASSERT_EQ(Samples(metrics.time_per_output_token), several);
    ASSERT_EQ(Samples(metrics.e2e_latency), finished);
    ASSERT_EQ(metrics.generation_tokens.Value(), tokens);
    double ended = 0, by_priority = 0;
    for (const auto* counter : metrics.requests_finished) ended += counter->Value();
    for (const auto* gauge : metrics.waiting_by_priority) by_priority += gauge->Value();
    ASSERT_EQ(ended, finished);
    ASSERT_EQ(metrics.requests_started.Value(),
              ended + metrics.requests_running.Value() + metrics.requests_waiting.Value());
    ASSERT_EQ(by_priority, metrics.requests_waiting.Value());
    const Metrics::KvBlocks& kv = metrics.kv_blocks;
    ASSERT_EQ(kv.used.Value() + kv.cached.Value() + kv.free.Value(), kv.total.Value());
    ASSERT_LE(kv.reserved.Value(), kv.cached.Value() + kv.free.Value());
    ASSERT_EQ(metrics.prompt_tokens_cached.Value(), metrics.prefix_cache_hits_tokens.Value());
    ASSERT_LE(metrics.prefix_cache_hits_tokens.Value(),
              metrics.prefix_cache_queries_tokens.Value());
    // Those in the plan in flight are still held.
    ASSERT_LE(Samples(metrics.cancel_to_free), aborted);
    ASSERT_LE(aborted - Samples(metrics.cancel_to_free), config_.max_lanes);
  }

  static uint64_t Samples(const prometheus::Histogram& histogram) {
    return histogram.Collect().histogram.sample_count;
  }

  struct Ask {
    std::vector<uint32_t> prompt, stops;
    uint32_t max_tokens, tail;
    v1::SamplingParams sampling;
  };

  // What decode rows read: those of the tail, then one for every token but the first, the stop
  // token among them. Rows in flight behind a stop are in nobody's usage.
  static void CheckUsage(const Ask& ask, const Told& told) {
    const RequestUsage& usage = told.finished->usage;
    const size_t prompt = ask.prompt.size();
    const size_t tail = std::min<size_t>(ask.tail, prompt);
    const size_t sampled = told.tokens.size() + (told.finished->reason == FinishReason::kStop);
    uint64_t read = 0;
    for (size_t end = prompt - tail + 1; end < prompt + sampled; ++end) read += end;
    ASSERT_EQ(usage.decode_steps, tail + sampled - 1);
    ASSERT_EQ(usage.kv_read.dense_tokens(), read);
  }

  void CheckReply(const std::string& id, const Told& told) {
    ASSERT_TRUE(told.finished.has_value()) << id;
    const Ask& ask = asks_[id];
    std::vector<uint32_t> expected =
        ExpectedReply(ask.prompt, ask.max_tokens, config_.vocab_size, ask.sampling);
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
    if (told.finished->reason != FinishReason::kAborted) CheckUsage(ask, told);
    std::vector<float> log_probs = ExpectedPromptLogProbs(ask.prompt);
    if (!ask.sampling.prompt_log_probs()) log_probs.clear();
    ASSERT_LE(told.prompt_log_probs.size(), log_probs.size());
    if (told.tokens.empty()) log_probs.resize(told.prompt_log_probs.size());
    ASSERT_EQ(told.prompt_log_probs, log_probs) << id;
  }

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
    harness_.Fill();
    if (harness_.in_flight() > 0) {
      // The engine handles messages while steps are in flight.
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
  EXPECT_EQ(harness_.metrics().waiting_prompt_tokens.Value(), 0);
  for (const auto& [id, told] : harness_.all_told()) {
    ASSERT_NO_FATAL_FAILURE(CheckReply(id, told));
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds,
                         SchedulerFuzz,
                         ::testing::Combine(::testing::Range(0, 30),
                                            ::testing::Values(1u, 2u, 3u)));

}  // namespace
}  // namespace asynctls
