// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/step_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "google/protobuf/text_format.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;

// Four lanes, all started and with blocks: dense, exact by code, exact by bound, lagged.
class StepInputsTest : public ::testing::Test {
 protected:
  StepInputsTest() {
    const char* sparse[] = {"mode: ATTENTION_MODE_DENSE",
                            "mode: ATTENTION_MODE_EXACT selector: SELECTOR_CODE top_p: 0.5",
                            "mode: ATTENTION_MODE_EXACT selector: SELECTOR_BOUND",
                            "mode: ATTENTION_MODE_LAGGED selector: SELECTOR_CODE"};
    std::string text;
    for (int i = 0; i < 4; ++i) {
      const std::string lane = std::to_string(i);
      text += "starts { lane: " + lane + " sampling { top_p: 1 seed: 5 } sparse { budget: 20 " +
              "blocks: 1000 " + sparse[i] + " } } work { lane: " + lane + " new_blocks: " + lane +
              " count: 3 tokens: [10, 11, 12] sample: true } ";
    }
    first_ = Pack(text);
  }
  Step Pack(const std::string& text) {
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &plan_)) << text;
    const absl::Status status = lanes_.Apply(plan_, *slots_);
    EXPECT_TRUE(status.ok()) << status;
    return inputs_->Pack(plan_, lanes_)[kPromptPass];
  }

  v1::StepPlan plan_;
  LaneTable lanes_{{.lanes = 4,
                    .step_tokens = 20,
                    .max_context = 128,
                    .vocab = 100,
                    .max_budget = 50,
                    .bound_selector = true}};
  absl::StatusOr<SlotTable> slots_ = SlotTable::Create(4, 2, 8, MemoryKind::kHost);
  absl::StatusOr<StepInputs> inputs_ = StepInputs::Create(
      {.lanes = 4, .step_tokens = 20, .decode_rows = 4, .max_blocks = 2, .dense_below = 5},
      MemoryKind::kHost);
  Step first_;
};

template <typename T>
std::vector<T> Values(View<const T, 1> view) {
  return {view.begin(), view.end()};
}

TEST_F(StepInputsTest, PacksPrefill) {
  EXPECT_EQ(first_.attention.prefill_rows, 12);
  EXPECT_THAT(Values(first_.ids), ElementsAre(10, 11, 12, 10, 11, 12, 10, 11, 12, 10, 11, 12));
  EXPECT_THAT(Values(first_.attention.positions), ElementsAre(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2));
  EXPECT_THAT(Values(first_.attention.lanes), ElementsAre(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3));
  EXPECT_EQ(inputs_->last_row(1), 5);
  EXPECT_EQ(inputs_->last_row(3), 11);
  ASSERT_EQ(first_.attention.segments.dim(0), 4);
  EXPECT_EQ(first_.attention.segments[3].row, 9);
  EXPECT_EQ(first_.attention.segments[3].count, 3);
  EXPECT_FALSE(first_.attention.report_blocks);
}

TEST_F(StepInputsTest, GroupsDecodeRowsBehindPrefill) {
  std::string text;
  // Position 3 has 4 positions to read, below dense_below: all dense.
  for (int i = 0; i < 4; ++i) {
    text += "work { lane: " + std::to_string(i) + " start: 3 count: 1 decode: true sample: true } ";
  }
  EXPECT_EQ(Pack(text).attention.dense_rows, 4);
  const Step step = Pack(
      "work { lane: 3 start: 4 count: 1 decode: true sample: true }"
      "work { lane: 2 start: 4 count: 1 decode: true tokens: 50 }"
      "work { lane: 1 start: 4 count: 1 decode: true sample: true }"
      "work { lane: 0 start: 4 count: 2 tokens: [20, 21] }");
  const AttentionBatch& a = step.attention;
  EXPECT_EQ(a.prefill_rows, 2);
  EXPECT_EQ(a.dense_rows, 0);
  EXPECT_EQ(a.code_rows, 2);
  EXPECT_EQ(a.bound_rows(), 1);
  EXPECT_THAT(Values(step.ids), ElementsAre(20, 21, -4, -2, 50));
  EXPECT_THAT(Values(a.lanes), ElementsAre(0, 0, 3, 1, 2));
  EXPECT_EQ(inputs_->last_row(3), 2);
  EXPECT_EQ(inputs_->last_row(1), 3);
  EXPECT_EQ(a.rows[0].lag, DecodeRow::kLaggedFirst);
  EXPECT_EQ(a.rows[0].length, 5);
  EXPECT_EQ(a.rows[0].max_blocks, 2);  // no lane has more
  EXPECT_EQ(a.rows[0].max_tokens, 20);
  EXPECT_EQ(a.rows[0].top_p, 1.0f);
  EXPECT_EQ(a.rows[1].top_p, 0.5f);
  EXPECT_EQ(a.rows[1].lag, DecodeRow::kExact);
  EXPECT_EQ(inputs_->mode(0), v1::ATTENTION_MODE_LAGGED);
  EXPECT_EQ(inputs_->mode(2), v1::ATTENTION_MODE_EXACT);
  const Step next = Pack("work { lane: 3 start: 5 count: 1 decode: true }");
  EXPECT_EQ(next.attention.rows[0].lag, DecodeRow::kLagged);
  // Prompt rows in between start the lag over.
  Pack("work { lane: 3 start: 6 count: 1 tokens: 1 sample: true }");
  EXPECT_EQ(Pack("work { lane: 3 start: 7 count: 1 decode: true }").attention.rows[0].lag,
            DecodeRow::kLaggedFirst);
}

TEST_F(StepInputsTest, AnEmptyPlanPacksNoRows) {
  const Step step = Pack("released_lanes: 2");
  EXPECT_EQ(step.ids.dim(0), 0);
  EXPECT_EQ(step.attention.rows.dim(0), 0);
}

}  // namespace
}  // namespace asynctls
