// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/lane_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "google/protobuf/text_format.h"

namespace asynctls {
namespace {

using ::testing::HasSubstr;

// Two lanes of at most 130 positions (3 blocks of 8), 40 rows a step, vocabulary of 100.
class LaneTableTest : public ::testing::Test {
 protected:
  absl::Status Apply(const std::string& text) {
    v1::StepPlan plan;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &plan)) << text;
    return lanes_.Apply(plan, *slots_);
  }
  void ExpectBroken(const std::string& text, const std::string& part) {
    const absl::Status status = Apply(text);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
  void StartLane0() {
    ASSERT_TRUE(Apply(kStart + "work { lane: 0 new_blocks: 4 count: 2 tokens: [1, 2] }").ok());
  }

  static inline const std::string kStart =
      "starts { lane: 0 sampling { top_p: 1 } sparse { mode: ATTENTION_MODE_LAGGED "
      "selector: SELECTOR_CODE budget: 10 blocks: 2 } } ";
  LaneTable lanes_{{.lanes = 2,
                    .step_tokens = 40,
                    .max_context = 130,
                    .vocab = 100,
                    .max_budget = 50,
                    .bound_selector = false}};
  absl::StatusOr<SlotTable> slots_ = SlotTable::Create(2, 3, 8, MemoryKind::kHost);
};

TEST_F(LaneTableTest, FollowsALaneThroughItsLife) {
  StartLane0();
  EXPECT_EQ(lanes_.lane(0).length, 2);
  EXPECT_FALSE(lanes_.lane(0).token_ready);
  EXPECT_EQ(slots_->view()(0, 0), 4);
  ASSERT_TRUE(Apply("work { lane: 0 start: 2 count: 1 tokens: 7 sample: true }").ok());
  EXPECT_TRUE(lanes_.lane(0).token_ready);
  ASSERT_TRUE(Apply("work { lane: 0 start: 3 count: 1 decode: true sample: true }").ok());
  EXPECT_EQ(lanes_.lane(0).length, 4);
  ASSERT_TRUE(Apply("released_lanes: 0 " + kStart).ok());  // freed and taken in one plan
  EXPECT_EQ(lanes_.lane(0).length, 0);
  EXPECT_EQ(slots_->blocks(0), 0);
}

TEST_F(LaneTableTest, TheFirstWorkMayBeginBehindAPrefix) {
  ASSERT_TRUE(
      Apply(kStart + "work { lane: 0 new_blocks: [1, 2] start: 64 count: 1 tokens: 5 }").ok());
  EXPECT_EQ(lanes_.lane(0).length, 65);
  ExpectBroken("work { lane: 0 start: 67 count: 1 tokens: 5 }", "start is 67, its KV ends at 65");
}

TEST_F(LaneTableTest, RefusesImpossibleStarts) {
  const auto start = [](const std::string& sampling, const std::string& sparse) {
    return "starts { lane: 0 sampling { top_p: 1 " + sampling + " } sparse { " + sparse + " } }";
  };
  const std::string ok = "mode: ATTENTION_MODE_EXACT selector: SELECTOR_CODE budget: 1 blocks: 1";
  ExpectBroken(start("", ""), "mode is 0, must be resolved");
  ExpectBroken(start("", "mode: ATTENTION_MODE_EXACT selector: SELECTOR_CODE blocks: 1"),
               "budget is 0, must be 1 to 50");
  ExpectBroken(start("", "mode: ATTENTION_MODE_EXACT selector: SELECTOR_CODE blocks: 1 budget: 51"),
               "budget is 51, must be 1 to 50");
  ExpectBroken(start("", "mode: ATTENTION_MODE_EXACT selector: SELECTOR_CODE budget: 1"),
               "blocks is 0");
  ExpectBroken(start("", "mode: ATTENTION_MODE_EXACT selector: SELECTOR_BOUND budget: 1 blocks: 1"),
               "selector is 2");
  ExpectBroken(start("", ok + " top_p: 1.5"), "top_p is 1.5, must be 0 to 1");
  ExpectBroken(start("temperature: nan", ok), "temperature is nan");
  ExpectBroken(start("temperature: -1", ok), "temperature is -1, must be 0 or more");
  ExpectBroken(start("top_k: -1", ok), "top_k is -1");
  ExpectBroken(start("min_p: 2", ok), "min_p is 2");
  ExpectBroken("starts { lane: 0 sparse { " + ok + " } }", "sampling top_p is 0");
  ExpectBroken("starts { lane: 2 }", "lane 2: started, but there are 2");
  StartLane0();
  ExpectBroken(kStart, "lane 0: started, but in use");
}

TEST_F(LaneTableTest, RefusesImpossiblePenaltiesAndIds) {
  const auto start = [](const std::string& sampling) {
    return "starts { lane: 0 sampling { top_p: 1 " + sampling +
           " } sparse { mode: ATTENTION_MODE_DENSE } }";
  };
  ExpectBroken(start("presence_penalty: nan"), "presence_penalty is nan");
  ExpectBroken(start("frequency_penalty: inf"), "frequency_penalty inf, must be finite");
  ExpectBroken(start("repetition_penalty: -0.5"), "repetition_penalty is -0.5, must be 0 (off)");
  ExpectBroken(start("top_log_probs: 21"), "21 top_log_probs, at most 20");
  ExpectBroken(start("prompt_top_log_probs: 21"), "21 prompt_top_log_probs, at most 20");
  ExpectBroken(start("logit_bias { key: 100 value: 1 }"),
               "logit_bias of 100, but the vocabulary has 100");
  ExpectBroken(start("logit_bias { key: 1 value: nan }"), "logit_bias of 1 is nan");
  ExpectBroken(start("suppressed_ids: 4000000000"), "suppressed id 4000000000, but");
  std::string many;
  for (int i = 0; i < 513; ++i) many += "suppressed_ids: 1 ";
  ExpectBroken(start(many), "513 suppressed_ids, at most 512");
  ExpectBroken("starts { lane: 0 prompt_ids: 100 sampling { top_p: 1 } }",
               "prompt id 100, but the vocabulary has 100");
  StartLane0();
  ExpectBroken("work { lane: 0 start: 2 count: 1 tokens: 1 next_token: 100 }",
               "next token 100, but the vocabulary has 100");
}

TEST_F(LaneTableTest, CountsWhatALaneSamples) {
  StartLane0();
  EXPECT_EQ(lanes_.lane(0).sampled, 0u);
  ASSERT_TRUE(Apply("work { lane: 0 start: 2 count: 1 tokens: 7 sample: true }").ok());
  ASSERT_TRUE(Apply("work { lane: 0 start: 3 count: 1 decode: true sample: true }").ok());
  EXPECT_EQ(lanes_.lane(0).sampled, 2u);
  ASSERT_TRUE(Apply("released_lanes: 0 " + kStart).ok());
  EXPECT_EQ(lanes_.lane(0).sampled, 0u);
}

TEST_F(LaneTableTest, RefusesImpossibleWork) {
  ExpectBroken("released_lanes: 1", "lane 1: released, not in use");
  ExpectBroken("released_lanes: 9", "lane 9: released, not in use");
  ExpectBroken("work { lane: 1 count: 1 tokens: 1 }", "lane 1: has work, but never started");
  StartLane0();
  ExpectBroken("work { lane: 0 start: 2 count: 1 decode: true }", "has sampled none");
  ExpectBroken("work { lane: 0 start: 2 count: 2 decode: true tokens: [1, 2] }",
               "decode of 2 rows, must be 1");
  ExpectBroken("work { lane: 0 start: 2 count: 2 tokens: 1 }", "1 tokens for 2 rows");
  ExpectBroken("work { lane: 0 start: 2 count: 1 tokens: 100 }",
               "token 100, but the vocabulary has 100");
  ExpectBroken("work { lane: 0 start: 2 }", "count is 0");
  ExpectBroken("work { lane: 0 start: 2 count: 1 tokens: 1 new_blocks: 8 }",
               "block 8, but there are 8");
}

TEST_F(LaneTableTest, RefusesWorkWithoutRoom) {
  StartLane0();
  std::string tokens = "tokens: 1";
  for (int i = 1; i < 40; ++i) tokens += " tokens: 1";
  ASSERT_TRUE(Apply("work { lane: 0 start: 2 count: 40 " + tokens + " }").ok());
  ExpectBroken("work { lane: 0 start: 42 count: 40 " + tokens + " }",
               "rows up to position 82, its blocks and the context hold 64");
  ExpectBroken(
      "work { lane: 0 start: 42 count: 1 tokens: 1 } work { lane: 0 start: 43 count: 1 "
      "tokens: 1 }",
      "has work twice in one step");
}

TEST_F(LaneTableTest, RefusesStepsWithTooManyRows) {
  StartLane0();
  std::string tokens;
  for (int i = 0; i < 41; ++i) tokens += " tokens: 1";
  ExpectBroken("work { lane: 0 start: 2 count: 41 " + tokens + " }",
               "41 rows, over the limit of 40");
}

}  // namespace
}  // namespace asynctls
