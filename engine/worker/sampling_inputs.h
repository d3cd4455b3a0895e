// SPDX-License-Identifier: Apache-2.0
// SamplingInputs: what comes after the forward pass of a plan, as arrays that ops read and write:
// the rows that are sampled, the prompt rows whose log-probabilities are asked for, and what is
// kept of each lane between steps (its token history, its biases and bans). Only rank 0 samples; on
// the others there is no such memory, and the arrays say which rows to compute. Threading: its
// worker's thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/worker/lane_table.h"
#include "engine/worker/step_inputs.h"
#include "kernels/device/buffer.h"
#include "kernels/device/carver.h"
#include "kernels/ops.h"

namespace asynctls {

struct SamplingShape {
  int lanes = 0;            // L
  int64_t step_tokens = 0;  // T
  int64_t tile = 0;         // prompt rows whose logits are computed at once
  int vocab = 0;            // V, ids below it are sampled
  bool samples = false;     // rank 0
};

class SamplingInputs {
 public:
  static int64_t Bytes(const SamplingShape& shape);
  // Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<SamplingInputs> Create(const SamplingShape& shape);

  // Takes over a lane's biases and bans, in place of those of the sequence before it. With a
  // penalty, returns what StartHistory is to be called with; its ids are those of `start`.
  std::optional<StartHistoryArgs> Start(const v1::LaneStart& start);

  // Packs `plan`, which LaneTable::Apply has accepted and `inputs` packed.
  void Pack(const v1::StepPlan& plan, LaneTable& lanes, const StepInputs& inputs);

  // Sampling, one row per sampled lane in the plan's order: rows of the step, then what the ops
  // get. TopIds has no rows where no lane asks for them.
  View<const int32_t, 1> sampled_rows() const { return sampled_rows_.Slice(0, sampled_); }
  View<const SampleRow, 1> sample_rows() const { return samples_.Slice(0, sampled_); }
  View<int32_t, 1> tokens() const { return token_.Slice(0, sampled_); }
  SampleArgs Sampling(View<const float, 2> logits, View<int32_t, 1> last_token) const;
  LogProbsArgs TopIds(View<const float, 2> logits) const;

  // Prompt rows, a tile at a time: rows of the step, and the op over their logits.
  int64_t prompt_tiles() const { return (prompt_rows_ + shape_.tile - 1) / shape_.tile; }
  View<const int32_t, 1> PromptRows(int64_t tile) const;
  LogProbsArgs PromptLogProbs(int64_t tile, View<const float, 2> logits) const;

  // Adds sampled and prompt_tokens to `result`, once all of the above has been computed.
  void Report(v1::StepResult& result) const;

 private:
  struct Scores {
    View<LogProbRow, 1> rows;
    View<float, 1> log_prob;
    View<int32_t, 2> top_ids;
    View<float, 2> top_log_probs;
  };
  // How many of a lane's edits are bans, biases of other ids, and biases of the banned ones; they
  // lie in this order, so that bans come and go by a range.
  struct Edits {
    int32_t bans = 0, biases = 0, banned_biases = 0;
  };
  // The prompt tokens [start, ...) of a lane have the scores [begin, end).
  struct PromptSpan {
    uint32_t lane, start;
    int64_t begin, end;
    bool top;
  };

  void Carve(Carver& carver);
  static Scores CarveScores(Carver& carver, int64_t rows);
  void PackPrompt(const v1::LaneWork& work, const v1::SamplingParams& sampling, int32_t last_row);
  void PackSample(const v1::LaneWork& work, const Lane& lane, int32_t last_row);
  LogProbsArgs ArgsOf(const Scores& scores,
                      int64_t begin,
                      int64_t count,
                      View<const float, 2> logits) const;
  static void FillTop(const Scores& scores, int64_t i, v1::TopIds& top);

  SamplingShape shape_;
  Buffer arena_;
  View<int32_t, 1> sampled_rows_;  // [L]
  View<SampleRow, 1> samples_;     // [L]
  View<int32_t, 1> token_;         // [L]
  View<float, 1> log_prob_;        // [L]
  Scores top_;                     // [L]
  View<int32_t, 1> prompt_;        // [T], rows of the step
  Scores prompt_scores_;           // [T]
  View<LogitEdit, 2> edits_;       // [L, biases + bans], kept between steps
  TokenHistory history_;           // kept between steps
  std::vector<Edits> lane_edits_;
  std::vector<PromptSpan> spans_;
  std::vector<int64_t> top_of_;  // by sampled row: its place in top_, -1 = none
  int64_t sampled_ = 0;
  int64_t top_rows_ = 0;
  int64_t prompt_rows_ = 0;
};

}  // namespace asynctls
