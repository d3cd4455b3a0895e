// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/step_inputs.h"

#include <algorithm>
#include <utility>

#include "engine/worker/padded_rows.h"

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
  const auto take = [&](int pass, int64_t rows) {
    for (View<int32_t, 1>* view : {&rows_[pass].ids, &rows_[pass].positions, &rows_[pass].lanes}) {
      *view = carver.Take<int32_t, 1>({rows});
    }
  };
  take(kDecodePass, shape_.split_passes ? shape_.decode_rows : 0);
  decodes_ = carver.Take<DecodeRow, 1>({shape_.decode_rows});
  decode_bytes_ = carver.bytes();
  take(kPromptPass, shape_.step_tokens);
  segments_ = carver.Take<PrefillSegment, 1>({shape_.lanes});
}

int64_t StepInputs::Bytes(const StepInputsShape& shape) {
  StepInputs measured;
  measured.shape_ = shape;
  Carver carver;
  measured.Carve(carver);
  carver.Take<int32_t, 1>({shape.lanes});  // last_token
  return carver.bytes();
}

absl::StatusOr<StepInputs> StepInputs::Create(const StepInputsShape& shape, MemoryKind kind) {
  StepInputs inputs;
  inputs.shape_ = shape;
  Carver measure;
  inputs.Carve(measure);
  absl::StatusOr<Mirror> mirror = Mirror::Create(kind, measure.bytes());
  if (!mirror.ok()) return mirror.status();
  absl::StatusOr<Buffer> kept =
      Buffer::Allocate(kind, shape.lanes * static_cast<int64_t>(sizeof(int32_t)));
  if (!kept.ok()) return kept.status();
  inputs.kept_ = std::make_shared<Buffer>(*std::move(kept));
  inputs.last_token_ = inputs.kept_->ViewAt<int32_t, 1>(0, {shape.lanes});
  inputs.Use(*std::move(mirror));
  return inputs;
}

absl::StatusOr<StepInputs> StepInputs::Twin() const {
  absl::StatusOr<Mirror> mirror = inputs_.Twin();
  if (!mirror.ok()) return mirror.status();
  StepInputs twin;
  twin.shape_ = shape_;
  twin.kept_ = kept_;
  twin.last_token_ = last_token_;
  twin.Use(*std::move(mirror));
  return twin;
}

void StepInputs::Use(Mirror inputs) {
  inputs_ = std::move(inputs);
  Carver carver(inputs_.host());
  Carve(carver);
  last_row_.resize(static_cast<size_t>(shape_.lanes));
}

void StepInputs::Add(Rows& rows, int32_t id, int32_t position, int32_t lane) {
  rows.ids[rows.count] = id;
  rows.positions[rows.count] = position;
  rows.lanes[rows.count++] = lane;
}

void StepInputs::PackWork(const v1::LaneWork& work) {
  Rows& rows = rows_[pass(work)];
  const auto lane = static_cast<int32_t>(work.lane());
  for (uint32_t i = 0; i < work.count(); ++i) {
    Add(rows,
        work.tokens_size() == 0 ? -1 - lane : static_cast<int32_t>(work.tokens(i)),
        static_cast<int32_t>(work.start() + i),
        lane);
  }
  last_row_[work.lane()] = static_cast<int32_t>(rows.count - 1);
}

void StepInputs::PackPrompts(const v1::StepPlan& plan, Step& step) {
  int64_t segments = 0;
  for (const v1::LaneWork& work : plan.work()) {
    if (work.decode()) continue;
    segments_[segments++] = {.row = static_cast<int32_t>(rows_[kPromptPass].count),
                             .count = static_cast<int32_t>(work.count()),
                             .lane = static_cast<int32_t>(work.lane()),
                             .start = static_cast<int32_t>(work.start())};
    PackWork(work);
  }
  step.attention.prefill_rows = static_cast<int>(rows_[kPromptPass].count);
  step.attention.host_segments = segments_.Slice(0, segments);
  step.attention.segments = inputs_.Device(segments_.Slice(0, segments));
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

// Pads the group of decode rows that began with row `begin`.
void StepInputs::PadDecodes(int64_t begin) {
  if (!shape_.split_passes) return;
  const int64_t end = begin + PaddedRows(static_cast<int64_t>(modes_.size()) - begin);
  while (static_cast<int64_t>(modes_.size()) < end) {
    decodes_[static_cast<int64_t>(modes_.size())] = {.lane = 0,
                                                     .length = 0,
                                                     .max_blocks = 1,
                                                     .max_tokens = 1,
                                                     .top_p = 1,
                                                     .lag = DecodeRow::kExact};
    modes_.push_back(v1::ATTENTION_MODE_UNSPECIFIED);
    Add(rows_[kDecodePass], 0, 0, -1);
  }
}

void StepInputs::PackDecodes(const v1::StepPlan& plan, LaneTable& lanes, AttentionBatch& batch) {
  int64_t grouped[3];  // decode rows up to and with each group
  for (const Attends group : {Attends::kDense, Attends::kByCode, Attends::kByBound}) {
    const auto begin = static_cast<int64_t>(modes_.size());
    for (const v1::LaneWork& work : plan.work()) {
      Lane& lane = lanes.lane(work.lane());
      if (!work.decode() || HowAttends(work, lane, shape_.dense_below) != group) continue;
      PackDecode(
          work, lane, group == Attends::kDense ? v1::ATTENTION_MODE_DENSE : lane.sparse.mode());
    }
    PadDecodes(begin);
    grouped[static_cast<int>(group)] = static_cast<int64_t>(modes_.size());
  }
  batch.host_rows = decodes_.Slice(0, grouped[2]);
  batch.rows = inputs_.Device(decodes_.Slice(0, grouped[2]));
  batch.dense_rows = static_cast<int>(grouped[0]);
  batch.code_rows = static_cast<int>(grouped[1] - grouped[0]);
  batch.report_blocks = plan.report_blocks();
}

Steps StepInputs::Pack(const v1::StepPlan& plan, LaneTable& lanes) {
  for (Rows& rows : rows_) rows.count = 0;
  modes_.clear();
  Steps steps;
  PackPrompts(plan, steps[kPromptPass]);
  PackDecodes(plan, lanes, steps[shape_.split_passes ? kDecodePass : kPromptPass].attention);
  for (int pass = 0; pass < kPasses; ++pass) {
    const Rows& rows = rows_[pass];
    const auto all = [&](const View<int32_t, 1>& view) {
      return inputs_.Device(view.Slice(0, rows.count));
    };
    steps[pass].ids = all(rows.ids);
    steps[pass].last_token = last_token_;
    steps[pass].attention.lanes = all(rows.lanes);
    steps[pass].attention.positions = all(rows.positions);
  }
  return steps;
}

}  // namespace asynctls
