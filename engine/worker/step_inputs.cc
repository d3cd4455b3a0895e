// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/step_inputs.h"

#include <algorithm>
#include <utility>

namespace asynctls {
namespace {

// The order of decode rows in a step.
enum class Attends { kDense, kByCode, kByBound };

Attends HowAttends(const v1::LaneWork& work, const Lane& lane, int64_t dense_below) {
  if (lane.sparse.mode() == v1::ATTENTION_MODE_DENSE || work.start() + int64_t{1} < dense_below) {
    return Attends::kDense;
  }
  return lane.sparse.selector() == v1::SELECTOR_BOUND ? Attends::kByBound : Attends::kByCode;
}

}  // namespace

void StepInputs::Carve(Carver& carver) {
  const int64_t t = shape_.step_tokens;
  const int64_t l = shape_.lanes;
  ids_ = carver.Take<int32_t, 1>({t});
  positions_ = carver.Take<int32_t, 1>({t});
  lanes_ = carver.Take<int32_t, 1>({t});
  segments_ = carver.Take<PrefillSegment, 1>({l});
  decodes_ = carver.Take<DecodeRow, 1>({l});
  last_token_ = carver.Take<int32_t, 1>({l});
}

int64_t StepInputs::Bytes(const StepInputsShape& shape) {
  StepInputs measured;
  measured.shape_ = shape;
  Carver carver;
  measured.Carve(carver);
  return carver.bytes();
}

absl::StatusOr<StepInputs> StepInputs::Create(const StepInputsShape& shape) {
  absl::StatusOr<Buffer> arena = Buffer::Allocate(MemoryKind::kHost, Bytes(shape));
  if (!arena.ok()) return arena.status();
  StepInputs inputs;
  inputs.shape_ = shape;
  inputs.arena_ = *std::move(arena);
  inputs.last_row_.resize(static_cast<size_t>(shape.lanes));
  Carver carver(inputs.arena_);
  inputs.Carve(carver);
  return inputs;
}

void StepInputs::PackWork(const v1::LaneWork& work) {
  const auto lane = static_cast<int32_t>(work.lane());
  for (uint32_t i = 0; i < work.count(); ++i, ++rows_) {
    ids_[rows_] = work.tokens_size() == 0 ? -1 - lane : static_cast<int32_t>(work.tokens(i));
    positions_[rows_] = static_cast<int32_t>(work.start() + i);
    lanes_[rows_] = lane;
  }
  last_row_[work.lane()] = static_cast<int32_t>(rows_ - 1);
}

void StepInputs::PackDecode(const v1::LaneWork& work, Lane& lane, v1::AttentionMode mode) {
  DecodeRow row{.lane = static_cast<int32_t>(work.lane()),
                .length = static_cast<int32_t>(work.start() + 1),
                .max_blocks = static_cast<int32_t>(
                    std::min<int64_t>(lane.sparse.blocks(), shape_.max_blocks)),
                .max_tokens = static_cast<int32_t>(
                    std::min<int64_t>(lane.sparse.budget(), shape_.max_blocks * kBlockPositions)),
                .top_p = lane.sparse.top_p() == 0 ? 1.0f : lane.sparse.top_p(),
                .lag = DecodeRow::kExact};
  if (mode == v1::ATTENTION_MODE_LAGGED) {
    row.lag = lane.lag_ready ? DecodeRow::kLagged : DecodeRow::kLaggedFirst;
    lane.lag_ready = true;
  }
  decodes_[static_cast<int64_t>(modes_.size())] = row;
  modes_.push_back(mode);
  PackWork(work);
}

Step StepInputs::Pack(const v1::StepPlan& plan, LaneTable& lanes) {
  rows_ = 0;
  modes_.clear();
  int64_t segments = 0;
  for (const v1::LaneWork& work : plan.work()) {
    if (work.decode()) continue;
    segments_[segments++] = {.row = static_cast<int32_t>(rows_),
                             .count = static_cast<int32_t>(work.count()),
                             .lane = static_cast<int32_t>(work.lane()),
                             .start = static_cast<int32_t>(work.start())};
    PackWork(work);
  }
  Step step;
  step.attention.prefill_rows = static_cast<int>(rows_);
  int64_t grouped[3];  // decode rows up to and with each group
  for (const Attends group : {Attends::kDense, Attends::kByCode, Attends::kByBound}) {
    for (const v1::LaneWork& work : plan.work()) {
      Lane& lane = lanes.lane(work.lane());
      if (!work.decode() || HowAttends(work, lane, shape_.dense_below) != group) continue;
      PackDecode(
          work, lane, group == Attends::kDense ? v1::ATTENTION_MODE_DENSE : lane.sparse.mode());
    }
    grouped[static_cast<int>(group)] = static_cast<int64_t>(modes_.size());
  }
  step.ids = ids_.Slice(0, rows_);
  step.last_token = last_token_;
  step.attention.lanes = lanes_.Slice(0, rows_);
  step.attention.positions = positions_.Slice(0, rows_);
  step.attention.segments = segments_.Slice(0, segments);
  step.attention.rows = decodes_.Slice(0, static_cast<int64_t>(modes_.size()));
  step.attention.dense_rows = static_cast<int>(grouped[0]);
  step.attention.report_blocks = plan.report_blocks();
  step.attention.code_rows = static_cast<int>(grouped[1] - grouped[0]);
  return step;
}

}  // namespace asynctls
