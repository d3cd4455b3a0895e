// SPDX-License-Identifier: Apache-2.0
// SamplingInputs: what comes after the forward passes of a plan, as arrays that ops read and write:
// the rows that are sampled, the prompt rows whose log-probabilities are asked for, and what is
// kept of each lane between steps (its token history, its biases and bans). Only rank 0 samples; on
// the others there is no such memory, and the arrays say which rows to compute. Views given out lie
// where the backend computes unless said otherwise. Threading: its worker's thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/worker/lane_table.h"
#include "engine/worker/step_inputs.h"
#include "kernels/device/buffer.h"
#include "kernels/device/carver.h"
#include "kernels/device/mirror.h"
#include "kernels/ops.h"

namespace asynctls {

struct SamplingShape {
  int lanes = 0;            // L
  int64_t step_tokens = 0;  // T
  int64_t tile = 0;         // prompt rows whose logits are computed at once
  int vocab = 0;            // V, ids below it are sampled
  int64_t prompt_ids = 0;   // most ids that one lane starts with
  bool samples = false;     // rank 0
  bool split_passes = false;
};

class SamplingInputs {
 public:
  static int64_t Bytes(const SamplingShape& shape);
  // `kind`: where the backend computes. Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<SamplingInputs> Create(const SamplingShape& shape, MemoryKind kind);

  // One for another step under way, as StepInputs::Twin. What is kept of lanes is common.
  absl::StatusOr<SamplingInputs> Twin() const;

  // Takes over a lane's biases and bans, in place of those of the sequence before it. With a
  // penalty, returns what StartHistory is to be called with; its ids are those of `start`, on the
  // host (Lend has room for them in ids()).
  std::optional<StartHistoryArgs> Start(const v1::LaneStart& start);
  const Buffer& ids() const { return kept_->ids; }

  // Packs `plan`, which LaneTable::Apply has accepted and `inputs` packed.
  void Pack(const v1::StepPlan& plan, LaneTable& lanes, const StepInputs& inputs);

  // Sends what Start and Pack have changed; brings the results of the step's ops to the host, in
  // the stream's order.
  template <class B>
  void Upload(B& ops) {
    for (const uint32_t lane : kept_->changed) kept_->edits_memory.Upload(ops, LaneEdits(lane));
    kept_->changed.clear();
    inputs_.Upload(ops, 0, Used(kPromptPass) ? inputs_.bytes() : decode_inputs_);
  }
  template <class B>
  void Download(B& ops) const {
    if (!shape_.samples) return;
    results_.Download(ops, 0, Used(kPromptPass) ? results_.bytes() : decode_results_);
  }

  // Sampling, one row per sampled lane in the plan's order, then padding where the pass is padded:
  // rows of the pass, then what the ops get. TopIds has no rows where no lane asks for them.
  View<const int32_t, 1> sampled_rows(int pass = kPromptPass) const;
  SampleArgs Sampling(View<const float, 2> logits,
                      View<int32_t, 1> last_token,
                      int pass = kPromptPass) const;
  LogProbsArgs TopIds(View<const float, 2> logits, int pass = kPromptPass) const;

  // What is sampled of a pass, on the host: the rows, and the tokens, which ranks other than the
  // first learn from it.
  View<const SampleRow, 1> host_rows(int pass = kPromptPass) const {
    return passes_[pass].samples.Slice(0, passes_[pass].sampled);
  }
  View<int32_t, 1> host_tokens(int pass) const {
    return passes_[pass].token.Slice(0, passes_[pass].sampled);
  }
  // Brings the tokens alone to the host, by the backend's next Wait.
  template <class B>
  void DownloadTokens(B& ops, int pass) const {
    results_.Download(ops, host_tokens(pass));
  }

  // Prompt rows, a tile at a time: rows of the pass, and the op over their logits.
  int64_t prompt_tiles(int pass = kPromptPass) const {
    return (passes_[pass].prompts + shape_.tile - 1) / shape_.tile;
  }
  View<const int32_t, 1> PromptRows(int64_t tile, int pass = kPromptPass) const;
  LogProbsArgs PromptLogProbs(int64_t tile,
                              View<const float, 2> logits,
                              int pass = kPromptPass) const;

  // Adds sampled and prompt_tokens to `result`, once all of the above has been computed and is on
  // the host.
  void Report(v1::StepResult& result) const;

 private:
  struct Scores {
    View<LogProbRow, 1> rows;
    View<float, 1> log_prob;
    View<int32_t, 2> top_ids;
    View<float, 2> top_log_probs;
  };
  // Of one pass, on the host.
  struct Pass {
    View<int32_t, 1> sampled_rows;  // [S]
    View<SampleRow, 1> samples;     // [S]
    View<int32_t, 1> token;         // [S]
    View<float, 1> log_prob;        // [S]
    Scores top;                     // [S]
    View<int32_t, 1> prompt;        // [T], rows of the pass
    Scores prompt_scores;           // [T]
    int64_t sampled = 0, padded = 0;
    int64_t tops = 0, prompts = 0;
    std::vector<int64_t> top_of;  // by sampled row: its place in top, -1 = none
  };
  // How many of a lane's edits are bans, biases of other ids, and biases of the banned ones; they
  // lie in this order, so that bans come and go by a range.
  struct Edits {
    int32_t bans = 0, biases = 0, banned_biases = 0;
  };
  // Of every lane, between steps. The host's side of a lane's edits changes when it is started, by
  // when no step that sent the last ones is under way.
  struct Kept {
    Mirror edits_memory;
    View<LogitEdit, 2> edits;  // [L, biases + bans], on the host
    std::vector<Edits> lane_edits;
    std::vector<uint32_t> changed;  // lanes whose edits are to be sent
    Buffer history_memory;
    TokenHistory history;
    Buffer ids;  // ids of one prompt, for StartHistory
  };
  // The prompt tokens [start, ...) of a lane have the scores [begin, end).
  struct PromptSpan {
    int pass;
    uint32_t lane, start;
    int64_t begin, end;
    bool top;
  };

  // Rows of a pass: most sampled, most of a prompt.
  int64_t Samples(int pass) const;
  int64_t Prompts(int pass) const;
  bool Used(int pass) const { return passes_[pass].sampled > 0 || passes_[pass].prompts > 0; }

  // What the steps need of the backend, and what is kept.
  void Carve(Carver& inputs, Carver& results);
  static void CarveKept(const SamplingShape& shape, Carver& edits, Carver& history, Kept& kept);
  void Use(Mirror inputs, Mirror results);
  static void CarveScores(int64_t rows, Carver& inputs, Carver& results, Scores& scores);
  View<LogitEdit, 1> LaneEdits(uint32_t lane) const;
  void PackPrompt(const v1::LaneWork& work,
                  const v1::SamplingParams& sampling,
                  int pass,
                  int32_t last_row);
  void PackSample(const v1::LaneWork& work, const Lane& lane, int pass, int32_t last_row);
  void Pad(Pass& pass);
  LogProbsArgs ArgsOf(const Scores& scores,
                      int64_t begin,
                      int64_t count,
                      View<const float, 2> logits) const;
  static void FillTop(const Scores& scores, int64_t i, v1::TopIds& top);

  SamplingShape shape_;
  Mirror inputs_, results_;  // of the decode pass first
  int64_t decode_inputs_ = 0, decode_results_ = 0;
  Pass passes_[kPasses];
  std::shared_ptr<Kept> kept_;
  std::vector<PromptSpan> spans_;
};

}  // namespace asynctls
