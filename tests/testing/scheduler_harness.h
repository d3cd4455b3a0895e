// SPDX-License-Identifier: Apache-2.0
// SchedulerHarness: a scheduler driven step by step on a FakeModel, in virtual time, recording what
// every request was told. No threads.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/metrics/metrics.h"
#include "engine/scheduler/scheduler.h"
#include "tests/testing/fake_worker.h"

namespace asynctls::testing {

// What one request was told.
struct Told {
  std::vector<uint32_t> tokens, progress;
  std::vector<v1::TopIds> top;          // of each token
  std::vector<float> prompt_log_probs;  // of position 1 on, without gaps
  std::vector<v1::TopIds> prompt_top;   // likewise
  std::optional<TokenEvent::Finished> finished;
};

// Four lanes, 64 blocks of 4 positions, 16 rows a step.
inline SchedulerConfig Small() {
  SchedulerConfig config;
  config.blocks = 64;
  config.block_positions = 4;
  config.max_context = 256;
  config.vocab_size = 1000;
  config.fingerprint = "model";
  config.max_lanes = 4;
  config.max_step_tokens = 16;
  return config;
}

class SchedulerHarness {
 public:
  explicit SchedulerHarness(const SchedulerConfig& config)
      : config_(config), scheduler_(config, metrics_), model_(ModelOptions(config)) {}

  // Adds a request as the engine does; the check must pass.
  void Add(Request request) {
    const absl::Status status = Scheduler::Check(config_, request);
    ASSERT_TRUE(status.ok()) << status;
    told_[request.id];
    scheduler_.Add(std::move(request), now);
  }

  // Plans a step; with work it is in flight until Commit.
  const v1::StepPlan& Plan(bool report_blocks = false) {
    plan_ = scheduler_.Plan(now, report_blocks);
    if (!plan_.work().empty()) in_flight_.push_back(plan_);
    Collect();
    return plan_;
  }
  // Runs the oldest step in flight on the model and commits it.
  void Commit() {
    const auto result = model_.Run(in_flight_.front());
    ASSERT_TRUE(result.ok()) << result.status();
    in_flight_.pop_front();
    now += absl::Seconds(1);
    const absl::Status status = scheduler_.Commit(*result, now);
    ASSERT_TRUE(status.ok()) << status;
    Collect();
  }
  // Both; false when there was nothing to do.
  bool Step() {
    if (Plan().work().empty()) return false;
    Commit();
    return true;
  }
  // Plans what may be in flight.
  void Fill() {
    while (in_flight_.size() < config_.plans_in_flight && !Plan().work().empty()) {
    }
  }
  // Steps until there is nothing to do; the number of steps.
  int Drain() {
    int steps = 0;
    for (Fill(); !in_flight_.empty(); Fill()) {
      Commit();
      if (++steps > 100000 || ::testing::Test::HasFatalFailure()) break;
    }
    return steps;
  }
  size_t in_flight() const { return in_flight_.size(); }

  void Cancel(const std::string& id) {
    scheduler_.Cancel(id, absl::CancelledError("cancelled"), now, now);
    Collect();
  }
  void Expire() {
    scheduler_.Expire(now);
    Collect();
  }

  Told& told(const std::string& id) { return told_[id]; }
  std::map<std::string, Told>& all_told() { return told_; }
  Scheduler& scheduler() { return scheduler_; }
  Metrics& metrics() { return metrics_; }
  // Order of everything told: "id:token", "id:prompt", "id:progress", "id:finished".
  const std::vector<std::string>& order() const { return order_; }

  void Collect() {
    for (const Scheduler::Event& event : scheduler_.TakeEvents()) {
      const std::string& id = event.request->id;
      Told& told = told_[id];
      EXPECT_FALSE(told.finished.has_value()) << id << " is told something after its finish";
      if (event.event.token.has_value()) {
        told.tokens.push_back(*event.event.token);
        told.top.push_back(event.event.top);
      }
      if (event.event.prompt_tokens_done.has_value()) {
        told.progress.push_back(*event.event.prompt_tokens_done);
      }
      if (event.event.prompt_log_probs.has_value()) {
        CollectPrompt(*event.event.prompt_log_probs, told);
      }
      if (event.event.finished.has_value()) told.finished = event.event.finished;
      order_.push_back(id + (event.event.token.has_value()              ? ":token"
                             : event.event.finished.has_value()         ? ":finished"
                             : event.event.prompt_log_probs.has_value() ? ":prompt"
                                                                        : ":progress"));
    }
  }

  absl::Time now = absl::UnixEpoch();

 private:
  static void CollectPrompt(const v1::PromptTokens& tokens, Told& told) {
    EXPECT_EQ(tokens.start(), told.prompt_log_probs.size() + 1) << "in order, each once";
    const auto& log_probs = tokens.log_probs();
    told.prompt_log_probs.insert(told.prompt_log_probs.end(), log_probs.begin(), log_probs.end());
    told.prompt_top.insert(told.prompt_top.end(), tokens.top().begin(), tokens.top().end());
  }

  static FakeOptions ModelOptions(const SchedulerConfig& config) {
    FakeOptions options;
    options.blocks = config.blocks;
    options.block_positions = config.block_positions;
    options.vocab_size = config.vocab_size;
    options.max_context = config.max_context;
    options.max_lanes = config.max_lanes;
    options.max_step_tokens = config.max_step_tokens;
    return options;
  }

  const SchedulerConfig config_;
  prometheus::Registry registry_;
  Metrics metrics_{registry_};
  Scheduler scheduler_;
  FakeModel model_;
  v1::StepPlan plan_;
  std::deque<v1::StepPlan> in_flight_;
  std::map<std::string, Told> told_;
  std::vector<std::string> order_;
};

// `size` ids that depend on `seed` from the first on.
inline std::vector<uint32_t> Prompt(uint32_t size, uint32_t seed) {
  std::vector<uint32_t> prompt(size);
  for (uint32_t i = 0; i < size; ++i) prompt[i] = (i * 7 + seed * 131 + 1) % 1000;
  return prompt;
}

inline Request MakeRequest(const std::string& id,
                           std::vector<uint32_t> prompt,
                           uint32_t max_tokens) {
  Request request;
  request.id = id;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  return request;
}

}  // namespace asynctls::testing
