// SPDX-License-Identifier: Apache-2.0
// StepInputs: packs a plan into one buffer, the arrays that the forward pass reads (what comes
// after it is in sampling_inputs.h). Decode rows are grouped by how they attend (densely, by key
// codes, by the bound); results are by lane, so their order is nobody else's business. Threading:
// its worker's thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/model/step.h"
#include "engine/worker/lane_table.h"
#include "kernels/device/buffer.h"
#include "kernels/device/carver.h"
#include "kernels/ops.h"

namespace asynctls {

struct StepInputsShape {
  int lanes = 0;
  int64_t step_tokens = 0;
  int64_t max_blocks = 0;   // M
  int64_t dense_below = 0;  // decode rows of fewer positions attend densely
};

class StepInputs {
 public:
  static int64_t Bytes(const StepInputsShape& shape);
  // Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<StepInputs> Create(const StepInputsShape& shape);

  // Packs `plan`, which LaneTable::Apply has just accepted. The result is valid until the next
  // call.
  Step Pack(const v1::StepPlan& plan, LaneTable& lanes);

  // Of the plan last packed: the last row of a lane that has work in it.
  int32_t last_row(uint32_t lane) const { return last_row_[lane]; }
  View<int32_t, 1> last_token() const { return last_token_; }

  // How decode row s of the step attends.
  v1::AttentionMode mode(int64_t s) const { return modes_[static_cast<size_t>(s)]; }

 private:
  void Carve(Carver& carver);
  void PackWork(const v1::LaneWork& work);
  void PackDecode(const v1::LaneWork& work, Lane& lane, v1::AttentionMode mode);

  StepInputsShape shape_;
  Buffer arena_;
  View<int32_t, 1> ids_, positions_, lanes_;  // [T]
  View<PrefillSegment, 1> segments_;          // [L]
  View<DecodeRow, 1> decodes_;                // [L]
  View<int32_t, 1> last_token_;               // [L], by lane, kept between steps
  std::vector<v1::AttentionMode> modes_;
  std::vector<int32_t> last_row_;  // by lane: its last row in the step
  int64_t rows_ = 0;
};

}  // namespace asynctls
