// SPDX-License-Identifier: Apache-2.0
// StepInputs: packs a plan into one buffer, the arrays that the forward passes read (what comes
// after them is in sampling_inputs.h). Decode rows are grouped by how they attend (densely, by key
// codes, by the bound); results are by lane, so their order is nobody else's business. Where decode
// rows are a pass of their own their groups are padded to few sizes, and a pass of the same sizes
// finds its rows at the same addresses. Threading: its worker's thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/model/step.h"
#include "engine/worker/lane_table.h"
#include "kernels/device/carver.h"
#include "kernels/device/mirror.h"
#include "kernels/ops.h"

namespace asynctls {

struct StepInputsShape {
  int lanes = 0;
  int64_t step_tokens = 0;
  int64_t decode_rows = 0;  // most of a step, padding included
  int64_t max_blocks = 0;   // M
  int64_t dense_below = 0;  // decode rows of fewer positions attend densely
  bool split_passes = false;
};

class StepInputs {
 public:
  static int64_t Bytes(const StepInputsShape& shape);
  // `kind`: where the backend computes. Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<StepInputs> Create(const StepInputsShape& shape, MemoryKind kind);

  // One for another step under way, which packs into host memory of its own (Mirror::Twin) and has
  // all else in common with this one.
  absl::StatusOr<StepInputs> Twin() const;

  // Packs `plan`, which LaneTable::Apply has just accepted. The result is valid until the next
  // call, which must wait until what was uploaded has left.
  Steps Pack(const v1::StepPlan& plan, LaneTable& lanes);
  // Sends what was packed.
  template <class B>
  void Upload(B& ops) const {
    inputs_.Upload(ops, 0, rows_[kPromptPass].count > 0 ? inputs_.bytes() : decode_bytes_);
  }

  // In which pass the rows of this work are.
  int pass(const v1::LaneWork& work) const {
    return shape_.split_passes && work.decode() ? kDecodePass : kPromptPass;
  }
  // Of the plan last packed: the last row, in its pass, of a lane that has work in it.
  int32_t last_row(uint32_t lane) const { return last_row_[lane]; }
  // [L], where the backend computes; kept between steps.
  View<int32_t, 1> last_token() const { return last_token_; }

  // How decode row s of the step attends.
  v1::AttentionMode mode(int64_t s) const { return modes_[static_cast<size_t>(s)]; }

 private:
  struct Rows {
    View<int32_t, 1> ids, positions, lanes;
    int64_t count = 0;
  };

  void Use(Mirror inputs);
  void Carve(Carver& carver);
  void Add(Rows& rows, int32_t id, int32_t position, int32_t lane);
  void PackWork(const v1::LaneWork& work);
  void PackPrompts(const v1::StepPlan& plan, Step& step);
  void PackDecodes(const v1::StepPlan& plan, LaneTable& lanes, AttentionBatch& batch);
  void PackDecode(const v1::LaneWork& work, Lane& lane, v1::AttentionMode mode);
  void PadDecodes(int64_t begin);

  StepInputsShape shape_;
  Mirror inputs_;
  int64_t decode_bytes_ = 0;          // of the decode pass, which comes first
  Rows rows_[kPasses];                // [T], of the decode pass [S]
  View<PrefillSegment, 1> segments_;  // [L]
  View<DecodeRow, 1> decodes_;        // [S]
  std::shared_ptr<Buffer> kept_;
  View<int32_t, 1> last_token_;
  std::vector<v1::AttentionMode> modes_;
  std::vector<int32_t> last_row_;  // by lane
};

}  // namespace asynctls
