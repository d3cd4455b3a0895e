// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/rank_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

using ::testing::HasSubstr;

v1::InitRequest Request() {
  v1::InitRequest r;
  r.set_model_dir("/models/tiny/");
  r.set_ranks(1);
  r.set_threads(1);
  r.set_max_lanes(4);
  r.set_max_step_tokens(64);
  r.set_max_budget(100);
  r.set_kv_bytes(1 << 20);
  return r;
}
// On a backend of host memory.
absl::StatusOr<RankPlan> PlanRank(const v1::InitRequest& request, const ModelConfig& config) {
  return asynctls::PlanRank(
      request, config, {.available = 1 << 30, .workspace = [](const RankPlan&) {
                          return 1 << 20;
                        }});
}
ModelConfig Config() { return *ParseModelConfig(TinyModel().config, "config.json", Json(), ""); }
void ExpectRefused(const std::function<void(v1::InitRequest&)>& change, const std::string& part) {
  v1::InitRequest request = Request();
  change(request);
  EXPECT_THAT(std::string(PlanRank(request, Config()).status().message()), HasSubstr(part));
}

TEST(RankPlanTest, SpendsKvBytesOnBlocks) {
  absl::StatusOr<RankPlan> plan = PlanRank(Request(), Config());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->kv.BlockBytes(), 64 * 2 * 2 * 128);
  int64_t kv = 0;
  for (const RankPlan::Memory& row : plan->memory) {
    if (row.what == "KV" || row.what == "key codes") kv += row.bytes;
  }
  EXPECT_LE(kv, 1 << 20);
  EXPECT_GT(kv, (1 << 20) - 2 * plan->kv.BlockBytes());
  EXPECT_EQ(plan->lanes.max_context, 1024);
  EXPECT_EQ(plan->max_blocks, 16);
  EXPECT_THAT(plan->MemoryTable(), HasSubstr("weights 1 MiB, KV "));
}

TEST(RankPlanTest, CutsTheContextToWhatKvHolds) {
  v1::InitRequest request = Request();
  request.set_kv_bytes(200'000);
  absl::StatusOr<RankPlan> plan = PlanRank(request, Config());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_LT(plan->blocks, 16);
  EXPECT_EQ(plan->lanes.max_context, plan->blocks * 64);
}

TEST(RankPlanTest, NamesFieldValueAndLimit) {
  ExpectRefused([](v1::InitRequest& r) { r.set_ranks(0); }, "init: ranks is 0, must be 1 to 64");
  ExpectRefused([](v1::InitRequest& r) { r.set_rank(1); }, "init: rank is 1, must be 0 to 0");
  ExpectRefused([](v1::InitRequest& r) { r.set_threads(0); }, "init: threads is 0");
  ExpectRefused([](v1::InitRequest& r) { r.set_max_lanes(5000); }, "init: max_lanes is 5000");
  ExpectRefused([](v1::InitRequest& r) { r.set_max_step_tokens(3); },
                "init: max_step_tokens is 3, must be 4 to");
  ExpectRefused([](v1::InitRequest& r) { r.set_max_budget(0); }, "init: max_budget is 0");
  ExpectRefused([](v1::InitRequest& r) { r.set_max_context(2000); },
                "init: max_context is 2000, the model has positions up to 1024");
  ModelConfig narrow = Config();
  narrow.head_dim = 16;
  EXPECT_EQ(std::string(PlanRank(Request(), narrow).status().message()),
            "head_dim is 16, key codes need at least 32: set dense_layers to 2");
  ExpectRefused([](v1::InitRequest& r) { r.set_kv_bytes(1000); },
                "init: kv_bytes is 1000, but one block of 64 positions needs");
}

TEST(RankPlanTest, SamplesTheTokenizersIds) {
  v1::InitRequest request = Request();
  EXPECT_EQ(PlanRank(request, Config())->sampling.vocab, 67);
  request.set_sampled_vocab(50);
  EXPECT_EQ(PlanRank(request, Config())->sampling.vocab, 50);
  EXPECT_EQ(PlanRank(request, Config())->lanes.vocab, 67);  // prompts may name all rows
  request.set_sampled_vocab(1000);
  EXPECT_EQ(PlanRank(request, Config())->sampling.vocab, 67);
}

TEST(RankPlanTest, OnlyRankZeroHasTheMemoryOfSampling) {
  const auto sampling = [](uint32_t rank, uint32_t lanes) {
    v1::InitRequest request = Request();
    request.set_ranks(2);
    request.set_rank(rank);
    request.set_max_lanes(lanes);
    const RankPlan plan = *PlanRank(request, Config());
    for (const RankPlan::Memory& row : plan.memory) {
      if (row.what == "sampling") return row.bytes;
    }
    return int64_t{-1};
  };
  // Per lane: edits, counts of 2 bytes, bits.
  const int64_t lane = (1024 + 512) * 8 + 67 * 2 + 3 * 4;
  EXPECT_GE(sampling(0, 32), sampling(1, 32) + 32 * lane);
  EXPECT_LE(sampling(0, 32), sampling(1, 32) + 32 * lane + 1000);
  EXPECT_EQ(PlanRank(Request(), Config())->activations.logit_rows, 64);
}

TEST(RankPlanTest, RefusesWhatMemoryDoesNotHold) {
  const RankPlan plan = *PlanRank(Request(), Config());
  EXPECT_TRUE(CheckFits(plan, plan.TotalBytes()).ok());
  const absl::Status status = CheckFits(plan, plan.TotalBytes() - 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("KV 1 MiB"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("MiB available"));
  EXPECT_GT(AvailableMemory(), 1 << 20);
}

TEST(RankPlanTest, WithoutKvBytesItTakesWhatMemoryLeaves) {
  v1::InitRequest request = Request();
  request.set_kv_bytes(0);
  BackendTraits backend{.available = int64_t{3} << 30,
                        .workspace = [](const RankPlan& p) { return p.max_blocks << 20; }};
  const RankPlan plan = *asynctls::PlanRank(request, Config(), backend);
  EXPECT_EQ(plan.memory.back().what, "workspace");
  EXPECT_EQ(plan.memory.back().bytes, 16 << 20);
  EXPECT_EQ(plan.lanes.max_context, 1024);
  const int64_t left = backend.available - plan.TotalBytes();
  EXPECT_GE(left, int64_t{1} << 30);
  EXPECT_LE(left, (int64_t{1} << 30) + (1 << 20));
  backend.available = 1 << 30;
  EXPECT_EQ(asynctls::PlanRank(request, Config(), backend).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(RankPlanTest, SplitPassesHaveRoomForPadding) {
  v1::InitRequest request = Request();
  request.set_max_lanes(32);
  request.set_bound_selector(true);
  BackendTraits backend{.available = 1 << 30,
                        .workspace = [](const RankPlan&) { return 0; },
                        .split_passes = true,
                        .bound_selector = false};
  EXPECT_THAT(std::string(asynctls::PlanRank(request, Config(), backend).status().message()),
              HasSubstr("init: bound_selector is true, must be false"));
  request.set_bound_selector(false);
  const RankPlan plan = *asynctls::PlanRank(request, Config(), backend);
  EXPECT_EQ(plan.decode_rows, 40);
  EXPECT_EQ(plan.selection.rows, 40);
  EXPECT_EQ(plan.inputs.decode_rows, 40);
  EXPECT_EQ(PlanRank(request, Config())->decode_rows, 32);
}

TEST(RankPlanTest, TheFingerprintFollowsWhatKvDependsOn) {
  const auto fingerprint = [](const v1::InitRequest& request, const ModelConfig& config) {
    return DescribeModel(request, config, *PlanRank(request, config)).fingerprint();
  };
  v1::InitRequest request = Request();
  ModelConfig config = Config();
  const std::string base = fingerprint(request, config);
  EXPECT_EQ(base.size(), 16u);
  EXPECT_EQ(fingerprint(request, config), base);
  request.set_max_lanes(2);
  EXPECT_EQ(fingerprint(request, config), base);
  config.rope_theta *= 2;
  EXPECT_NE(fingerprint(request, config), base);
  EXPECT_EQ(DescribeModel(request, config, *PlanRank(request, config)).name(), "tiny");
}

}  // namespace
}  // namespace asynctls
