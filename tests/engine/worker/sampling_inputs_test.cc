// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/sampling_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "google/protobuf/text_format.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;

constexpr int kVocab = 90;  // of 100 rows

// Three lanes, tiles of 4 prompt rows.
class SamplingInputsTest : public ::testing::Test {
 protected:
  void Pack(const std::string& text) {
    ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &plan_)) << text;
    const absl::Status status = lanes_.Apply(plan_, *slots_);
    ASSERT_TRUE(status.ok()) << status;
    histories_.clear();
    for (const v1::LaneStart& start : plan_.starts()) {
      const std::optional<StartHistoryArgs> history = sampling_->Start(start);
      if (history.has_value()) histories_.push_back(*history);
    }
    inputs_->Pack(plan_, lanes_);
    sampling_->Pack(plan_, lanes_, *inputs_);
  }
  static std::string Start(int lane, const std::string& sampling, const std::string& more = "") {
    return "starts { lane: " + std::to_string(lane) + " sampling { top_p: 1 " + sampling +
           " } sparse { mode: ATTENTION_MODE_DENSE } " + more + " } ";
  }
  static std::string Work(int lane, const std::string& rest) {
    return "work { lane: " + std::to_string(lane) + " " + rest + " } ";
  }
  // The edits of sampled row i, bans as "x".
  std::vector<std::string> Edits(int64_t i) {
    const SampleArgs args = sampling_->Sampling({}, inputs_->last_token());
    const SampleRow& row = args.rows[i];
    std::vector<std::string> out;
    for (int e = row.edit_begin; e < row.edit_begin + row.edit_count; ++e) {
      const LogitEdit& edit = args.edits(row.lane, e);
      out.push_back(std::to_string(edit.id) + ":" +
                    (std::isnan(edit.add) ? "x" : std::to_string(static_cast<int>(edit.add))));
    }
    return out;
  }

  v1::StepPlan plan_;
  std::vector<StartHistoryArgs> histories_;
  LaneTable lanes_{{.lanes = 3,
                    .step_tokens = 20,
                    .max_context = 128,
                    .vocab = 100,
                    .max_budget = 50,
                    .bound_selector = false}};
  absl::StatusOr<SlotTable> slots_ = SlotTable::Create(3, 2, 8, MemoryKind::kHost);
  absl::StatusOr<StepInputs> inputs_ = StepInputs::Create(
      {.lanes = 3, .step_tokens = 20, .decode_rows = 3, .max_blocks = 2, .dense_below = 0},
      MemoryKind::kHost);
  absl::StatusOr<SamplingInputs> sampling_ = SamplingInputs::Create(
      {.lanes = 3, .step_tokens = 20, .tile = 4, .vocab = kVocab, .samples = true},
      MemoryKind::kHost);
};

TEST_F(SamplingInputsTest, PacksWhatIsSampled) {
  Pack(Start(0, "temperature: 0.5 top_k: 3 min_p: 0.1 seed: 5 index: 2") +
       Start(1,
             "repetition_penalty: 1.5 frequency_penalty: 0.25 presence_penalty: -1",
             "prompt_ids: [7, 8]") +
       Start(2, "repetition_penalty: 1 top_log_probs: 4") +
       Work(0, "new_blocks: 0 count: 3 tokens: [1, 2, 3]") +
       Work(1, "new_blocks: 1 count: 2 tokens: [7, 8] sample: true") +
       Work(2, "new_blocks: 2 count: 1 tokens: 9 sample: true"));
  const auto rows = sampling_->sampled_rows();
  EXPECT_THAT(std::vector<int32_t>(rows.begin(), rows.end()), ElementsAre(4, 5));
  const SampleRow& penalised = sampling_->host_rows()[0];
  EXPECT_TRUE(penalised.penalised());
  EXPECT_EQ(penalised.repetition, 1.5f);
  EXPECT_EQ(penalised.frequency, 0.25f);
  EXPECT_EQ(penalised.presence, -1.0f);
  EXPECT_EQ(penalised.position, 2u);
  EXPECT_FALSE(sampling_->host_rows()[1].penalised());
  ASSERT_EQ(histories_.size(), 1u);
  EXPECT_EQ(histories_[0].lane, 1);
  EXPECT_EQ(histories_[0].prompt_ids.dim(0), 2);
  EXPECT_EQ(histories_[0].history.generated.shape, (std::array<int64_t, 2>{3, kVocab}));
  const LogProbsArgs top = sampling_->TopIds({});
  ASSERT_EQ(top.rows.dim(0), 1);
  EXPECT_EQ(top.rows[0].row, 1);  // of the sampled rows
  EXPECT_EQ(top.rows[0].top, 4);
  EXPECT_EQ(top.vocab, kVocab);
  Pack(Work(0, "start: 3 count: 1 tokens: 4 sample: true"));
  const SampleRow& plain = sampling_->host_rows()[0];
  EXPECT_FALSE(plain.penalised());
  EXPECT_EQ(plain.temperature, 0.5f);
  EXPECT_EQ(plain.top_k, 3);
  EXPECT_EQ(plain.min_p, 0.1f);
  EXPECT_EQ(plain.seed, 5u);
  EXPECT_EQ(plain.index, 2u);
  EXPECT_EQ(plain.position, 4u);
  EXPECT_EQ(sampling_->TopIds({}).rows.dim(0), 0);
}

TEST_F(SamplingInputsTest, BansEndWithMinTokens) {
  Pack(Start(1,
             "min_tokens: 2 suppressed_ids: [5, 6] logit_bias { key: 6 value: 3 } "
             "logit_bias { key: 9 value: -4 }") +
       Work(1, "new_blocks: 0 count: 1 tokens: 1 sample: true"));
  EXPECT_THAT(Edits(0), ElementsAre("5:x", "6:x", "9:-4"));
  const auto decode = [](int position) {
    return Work(1, "decode: true sample: true count: 1 start: " + std::to_string(position));
  };
  Pack(decode(1));
  EXPECT_THAT(Edits(0), ElementsAre("5:x", "6:x", "9:-4"));
  Pack(decode(2));
  EXPECT_THAT(Edits(0), ElementsAre("9:-4", "6:3"));
  // The next sequence on the lane has none of them.
  Pack("released_lanes: 1 " + Start(1, "suppressed_ids: 7") +
       Work(1, "new_blocks: 1 count: 1 tokens: 1 sample: true"));
  EXPECT_THAT(Edits(0), ElementsAre());
}

TEST_F(SamplingInputsTest, PromptRowsPredictTheTokenAfterThem) {
  Pack(Start(0, "prompt_log_probs: true prompt_top_log_probs: 2") + Start(1, "") +
       Start(2, "prompt_log_probs: true") +
       Work(0, "new_blocks: 0 count: 4 tokens: [10, 11, 12, 13] next_token: 14") +
       Work(1, "new_blocks: 1 count: 1 tokens: 20 sample: true") +
       Work(2, "new_blocks: 2 count: 3 tokens: [30, 31, 32] sample: true"));
  ASSERT_EQ(sampling_->prompt_tiles(), 2);
  const auto first = sampling_->PromptRows(0), second = sampling_->PromptRows(1);
  EXPECT_THAT(std::vector<int32_t>(first.begin(), first.end()), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(std::vector<int32_t>(second.begin(), second.end()), ElementsAre(5, 6));
  const Buffer logits = *Buffer::Allocate(MemoryKind::kHost, 8 * 100 * 4);
  const LogProbsArgs a = sampling_->PromptLogProbs(0, logits.ViewAt<float, 2>(0, {4, 100}));
  const LogProbsArgs b = sampling_->PromptLogProbs(1, logits.ViewAt<float, 2>(0, {2, 100}));
  EXPECT_EQ(a.rows[0].token, 11);
  EXPECT_EQ(a.rows[3].token, 14);
  EXPECT_EQ(a.rows[3].top, 2);
  EXPECT_EQ(b.rows[1].token, 32);
  EXPECT_EQ(b.rows[1].row, 1);
  EXPECT_EQ(b.rows[1].top, 0);
  for (int i = 0; i < 4; ++i) {
    a.log_prob[i] = -1.0f - static_cast<float>(i);
    for (int k = 0; k < 2; ++k) a.top_ids(i, k) = i == 2 && k == 1 ? -1 : 40 + k;
  }
  b.log_prob[0] = -7;
  b.log_prob[1] = -8;
  v1::StepResult result;
  sampling_->Report(result);
  EXPECT_EQ(result.sampled_size(), 2);
  ASSERT_EQ(result.prompt_tokens_size(), 2);
  EXPECT_EQ(result.prompt_tokens(0).lane(), 0u);
  EXPECT_EQ(result.prompt_tokens(0).start(), 1u);
  EXPECT_THAT(result.prompt_tokens(0).log_probs(), ElementsAre(-1, -2, -3, -4));
  ASSERT_EQ(result.prompt_tokens(0).top_size(), 4);
  EXPECT_THAT(result.prompt_tokens(0).top(1).ids(), ElementsAre(40, 41));
  EXPECT_THAT(result.prompt_tokens(0).top(2).ids(), ElementsAre(40));  // there was only one
  EXPECT_EQ(result.prompt_tokens(1).lane(), 2u);
  EXPECT_THAT(result.prompt_tokens(1).log_probs(), ElementsAre(-7, -8));
  EXPECT_EQ(result.prompt_tokens(1).top_size(), 0);
  // The tail: a decode row of a prompt token; then the last one, which predicts no prompt token.
  Pack(Work(0, "start: 4 count: 1 decode: true tokens: 14 next_token: 15"));
  EXPECT_EQ(sampling_->prompt_tiles(), 1);
  Pack(Work(0, "start: 5 count: 1 decode: true tokens: 15 sample: true"));
  EXPECT_EQ(sampling_->prompt_tiles(), 0);
}

TEST(SamplingInputsOfAnotherRankTest, LearnsTokensOnly) {
  const SamplingShape shape = {.lanes = 1, .step_tokens = 4, .tile = 4, .vocab = kVocab};
  absl::StatusOr<SamplingInputs> sampling = SamplingInputs::Create(shape, MemoryKind::kHost);
  ASSERT_TRUE(sampling.ok());
  v1::LaneStart start;
  start.mutable_sampling()->set_repetition_penalty(2);
  start.mutable_sampling()->set_min_tokens(1);
  start.mutable_sampling()->add_suppressed_ids(1);
  EXPECT_FALSE(sampling->Start(start).has_value());
  SamplingShape first = shape;
  first.samples = true;
  EXPECT_GT(SamplingInputs::Bytes(first), SamplingInputs::Bytes(shape));
}

}  // namespace
}  // namespace asynctls
