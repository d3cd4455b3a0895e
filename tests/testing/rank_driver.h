// SPDX-License-Identifier: Apache-2.0
// RankDriver: plays the scheduler for a RankModel in tests: hands out blocks in order, builds the
// plans, and expects them to run.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/worker/rank_model.h"

namespace asynctls {

inline v1::InitRequest InitFor(const std::string& model_dir) {
  v1::InitRequest r;
  r.set_model_dir(model_dir);
  r.set_ranks(1);
  r.set_threads(2);
  r.set_max_lanes(8);
  r.set_max_step_tokens(512);
  r.set_kv_bytes(uint64_t{64} << 20);
  r.set_max_budget(4096);
  return r;
}

inline v1::SparseParams Attend(v1::AttentionMode mode, uint32_t budget = 1, uint32_t blocks = 1) {
  v1::SparseParams p;
  p.set_mode(mode);
  p.set_selector(v1::SELECTOR_CODE);
  p.set_budget(budget);
  p.set_blocks(blocks);
  return p;
}

// Tables whose directions are the first channels of key and query, so that codes mean something
// without a calibration.
template <Ops B>
void SetPlainTables(RankModel<B>& model) {
  const KeyIndexShape& s = model.index().shape();
  const int r = kCodeDirections;
  std::vector<float> unit(static_cast<size_t>(s.kv_heads) * s.head_dim * r);
  for (int g = 0; g < s.kv_heads; ++g) {
    for (int c = 0; c < std::min(r, s.head_dim); ++c) unit[(g * s.head_dim + c) * r + c] = 1;
  }
  const std::vector<float> zero(static_cast<size_t>(s.kv_heads) * r);
  const View<const float, 3> table(unit.data(), {s.kv_heads, s.head_dim, r});
  for (int layer = s.first_layer; layer < s.layers; ++layer) {
    model.index().SetTable(
        model.ops(),
        layer,
        {.encode = table, .offset = {zero.data(), {s.kv_heads, r}}, .turn = table});
  }
}

// The logits of the row of the last pass's sampled ones, wherever they lie.
template <Ops B>
std::vector<float> LogitsOf(RankModel<B>& model, int64_t row) {
  const View<const float, 1> logits = model.logits()[row];
  std::vector<float> host(static_cast<size_t>(logits.size()));
  model.ops().Download(host.data(), logits.data, logits.size() * int64_t{sizeof(float)});
  model.ops().Wait();
  return host;
}

template <Ops B>
class RankDriver {
 public:
  explicit RankDriver(RankModel<B>& model) : model_(model) {}

  // A greedy sequence on a free lane, its first blocks given (a reused prefix of `start`
  // positions). What is returned may be changed until the next call.
  v1::LaneStart& Start(uint32_t lane,
                       const v1::SparseParams& sparse,
                       const std::vector<uint32_t>& blocks = {},
                       uint32_t start = 0) {
    v1::LaneStart* s = plan_.add_starts();
    s->set_lane(lane);
    s->mutable_sampling()->set_top_p(1);
    *s->mutable_sparse() = sparse;
    lanes_[lane] = {.length = start, .blocks = blocks, .sent = 0};
    return *s;
  }

  void Release(uint32_t lane) {
    plan_.add_released_lanes(lane);
    lanes_.erase(lane);
  }

  // Adds rows of prompt to the step being built; `next` is the prompt's token after them.
  void Prefill(uint32_t lane,
               std::span<const uint32_t> tokens,
               bool sample = false,
               std::optional<uint32_t> next = {}) {
    AddWork(lane, tokens, static_cast<uint32_t>(tokens.size()), false, sample, next);
  }
  // Adds one decode row: of `token`, or of the lane's last sampled one; sampled unless the prompt
  // goes on with `next`.
  void Decode(uint32_t lane,
              std::optional<uint32_t> token = {},
              std::optional<uint32_t> next = {}) {
    const uint32_t given = token.value_or(0);
    AddWork(lane, {&given, token.has_value() ? 1u : 0u}, 1, true, !next.has_value(), next);
  }
  // The step being built reports the blocks its decode rows read.
  void ReportBlocks() { plan_.set_report_blocks(true); }

  // Runs the step.
  v1::StepResult Run() {
    plan_.set_step(++step_);
    absl::StatusOr<v1::StepResult> result = model_.Run(plan_);
    plan_.Clear();
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : v1::StepResult();
  }
  // Begins the step; ends the oldest one begun.
  void Begin() {
    plan_.set_step(++step_);
    const absl::Status status = model_.Begin(plan_, nobody_);
    plan_.Clear();
    EXPECT_TRUE(status.ok()) << status;
  }
  v1::StepResult End() { return model_.End(); }

  // A whole prompt in chunks, alone; samples after the last row.
  v1::StepResult Prompt(uint32_t lane, std::span<const uint32_t> tokens, size_t chunk) {
    v1::StepResult result;
    while (!tokens.empty()) {
      const size_t count = std::min(chunk, tokens.size());
      const bool last = count == tokens.size();
      Prefill(lane, tokens.first(count), last, last ? std::nullopt : std::optional(tokens[count]));
      result = Run();
      tokens = tokens.subspan(count);
    }
    return result;
  }

  const std::vector<uint32_t>& blocks(uint32_t lane) { return lanes_[lane].blocks; }

 private:
  struct Lane {
    uint32_t length;
    std::vector<uint32_t> blocks;
    size_t sent;  // blocks the rank knows of
  };

  void AddWork(uint32_t id,
               std::span<const uint32_t> tokens,
               uint32_t count,
               bool decode,
               bool sample,
               std::optional<uint32_t> next) {
    Lane& lane = lanes_[id];
    v1::LaneWork* work = plan_.add_work();
    work->set_lane(id);
    work->set_start(lane.length);
    work->set_count(count);
    work->set_decode(decode);
    work->set_sample(sample);
    if (next.has_value()) work->set_next_token(*next);
    for (const uint32_t token : tokens) work->add_tokens(token);
    lane.length += count;
    while (static_cast<int64_t>(lane.blocks.size()) < BlocksFor(lane.length)) {
      lane.blocks.push_back(next_block_++);
    }
    for (; lane.sent < lane.blocks.size(); ++lane.sent)
      work->add_new_blocks(lane.blocks[lane.sent]);
  }

  const std::function<void()> nobody_ = [] {};
  RankModel<B>& model_;
  v1::StepPlan plan_;
  std::map<uint32_t, Lane> lanes_;
  uint32_t next_block_ = 0;
  uint64_t step_ = 0;
};

}  // namespace asynctls
