// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/lane_table.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"

namespace asynctls {
namespace {

template <typename... Args>
absl::Status Broken(uint32_t lane, const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("plan: lane ", lane, ": ", what...));
}

absl::Status CheckSampling(uint32_t lane, const v1::SamplingParams& s) {
  if (!(s.temperature() >= 0) || !std::isfinite(s.temperature())) {
    return Broken(lane, "temperature is ", s.temperature(), ", must be 0 or more");
  }
  if (s.top_k() < 0) return Broken(lane, "top_k is ", s.top_k(), ", must be 0 or more");
  if (!(s.top_p() > 0 && s.top_p() <= 1)) {
    return Broken(lane, "sampling top_p is ", s.top_p(), ", must be above 0 and at most 1");
  }
  if (!(s.min_p() >= 0 && s.min_p() <= 1)) {
    return Broken(lane, "min_p is ", s.min_p(), ", must be 0 to 1");
  }
  return absl::OkStatus();
}

absl::Status CheckId(uint32_t lane, const char* what, uint32_t id, int vocab) {
  if (id < static_cast<uint32_t>(vocab)) return absl::OkStatus();
  return Broken(lane, what, " ", id, ", but the vocabulary has ", vocab);
}

absl::Status CheckPenalties(uint32_t lane, const v1::SamplingParams& s) {
  if (!std::isfinite(s.presence_penalty()) || !std::isfinite(s.frequency_penalty())) {
    return Broken(lane,
                  "presence_penalty is ",
                  s.presence_penalty(),
                  " and frequency_penalty ",
                  s.frequency_penalty(),
                  ", must be finite");
  }
  if (!(s.repetition_penalty() >= 0) || !std::isfinite(s.repetition_penalty())) {
    return Broken(
        lane, "repetition_penalty is ", s.repetition_penalty(), ", must be 0 (off) or more");
  }
  const struct {
    const char* field;
    int64_t value, limit;
  } bounds[] = {{"logit_bias ids", static_cast<int64_t>(s.logit_bias().size()), kMaxLogitBias},
                {"suppressed_ids", s.suppressed_ids_size(), kMaxSuppressedIds},
                {"top_log_probs", s.top_log_probs(), kMaxTopIds},
                {"prompt_top_log_probs", s.prompt_top_log_probs(), kMaxTopIds}};
  for (const auto& b : bounds) {
    if (b.value > b.limit) return Broken(lane, b.value, " ", b.field, ", at most ", b.limit);
  }
  return absl::OkStatus();
}

absl::Status CheckIds(const v1::LaneStart& start, int vocab) {
  const uint32_t lane = start.lane();
  for (const auto& [id, bias] : start.sampling().logit_bias()) {
    if (!std::isfinite(bias)) return Broken(lane, "logit_bias of ", id, " is ", bias);
    const absl::Status status = CheckId(lane, "logit_bias of", id, vocab);
    if (!status.ok()) return status;
  }
  for (const uint32_t id : start.sampling().suppressed_ids()) {
    const absl::Status status = CheckId(lane, "suppressed id", id, vocab);
    if (!status.ok()) return status;
  }
  if (start.prompt_ids_size() > vocab) {
    return Broken(lane, start.prompt_ids_size(), " prompt_ids, but the vocabulary has ", vocab);
  }
  for (const uint32_t id : start.prompt_ids()) {
    const absl::Status status = CheckId(lane, "prompt id", id, vocab);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckSparse(uint32_t lane, const v1::SparseParams& s, const LaneLimits& limits) {
  switch (s.mode()) {
    case v1::ATTENTION_MODE_DENSE:
    case v1::ATTENTION_MODE_EXACT:
    case v1::ATTENTION_MODE_LAGGED:
      break;
    default:
      return Broken(lane, "mode is ", static_cast<int>(s.mode()), ", must be resolved");
  }
  if (s.mode() == v1::ATTENTION_MODE_DENSE) return absl::OkStatus();
  if (s.budget() < 1 || s.budget() > limits.max_budget) {
    return Broken(lane, "budget is ", s.budget(), ", must be 1 to ", limits.max_budget);
  }
  if (s.blocks() < 1) return Broken(lane, "blocks is 0, must be 1 or more");
  if (!(s.top_p() >= 0 && s.top_p() <= 1)) {
    return Broken(lane, "top_p is ", s.top_p(), ", must be 0 to 1");
  }
  const bool bound = s.selector() == v1::SELECTOR_BOUND;
  if (s.selector() != v1::SELECTOR_CODE && !(bound && limits.bound_selector)) {
    return Broken(lane,
                  "selector is ",
                  static_cast<int>(s.selector()),
                  ", must be SELECTOR_CODE, or SELECTOR_BOUND where the index for it is kept");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status LaneTable::Apply(const v1::StepPlan& plan, SlotTable& slots) {
  for (const uint32_t lane : plan.released_lanes()) {
    const absl::Status status = Release(lane, slots);
    if (!status.ok()) return status;
  }
  for (const v1::LaneStart& start : plan.starts()) {
    const absl::Status status = Start(start);
    if (!status.ok()) return status;
  }
  std::fill(worked_.begin(), worked_.end(), false);
  int64_t rows = 0;
  for (const v1::LaneWork& work : plan.work()) {
    const absl::Status status = Book(work, slots);
    if (!status.ok()) return status;
    rows += work.count();
  }
  if (rows > limits_.step_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("plan: ", rows, " rows, over the limit of ", limits_.step_tokens));
  }
  return absl::OkStatus();
}

absl::Status LaneTable::Release(uint32_t lane, SlotTable& slots) {
  if (lane >= lanes_.size() || !lanes_[lane].active) return Broken(lane, "released, not in use");
  lanes_[lane] = Lane{};
  slots.Release(static_cast<int>(lane));
  return absl::OkStatus();
}

absl::Status LaneTable::Start(const v1::LaneStart& start) {
  const uint32_t lane = start.lane();
  if (lane >= lanes_.size()) return Broken(lane, "started, but there are ", lanes_.size());
  if (lanes_[lane].active) return Broken(lane, "started, but in use");
  absl::Status status = CheckSampling(lane, start.sampling());
  if (status.ok()) status = CheckPenalties(lane, start.sampling());
  if (status.ok()) status = CheckIds(start, limits_.vocab);
  if (status.ok()) status = CheckSparse(lane, start.sparse(), limits_);
  if (!status.ok()) return status;
  lanes_[lane] = Lane{.active = true, .sampling = start.sampling(), .sparse = start.sparse()};
  return absl::OkStatus();
}

absl::Status LaneTable::CheckTokens(const v1::LaneWork& work, const Lane& lane) const {
  const uint32_t id = work.lane();
  const int given = work.tokens_size();
  if (work.decode() && work.count() != 1) {
    return Broken(id, "decode of ", work.count(), " rows, must be 1");
  }
  if (given == 0 && work.decode()) {
    if (!lane.token_ready) return Broken(id, "decodes its last token, but has sampled none");
  } else if (static_cast<uint32_t>(given) != work.count()) {
    return Broken(id, given, " tokens for ", work.count(), " rows");
  }
  for (const uint32_t token : work.tokens()) {
    const absl::Status status = CheckId(id, "token", token, limits_.vocab);
    if (!status.ok()) return status;
  }
  if (!work.has_next_token()) return absl::OkStatus();
  return CheckId(id, "next token", work.next_token(), limits_.vocab);
}

absl::Status LaneTable::Book(const v1::LaneWork& work, SlotTable& slots) {
  const uint32_t id = work.lane();
  if (id >= lanes_.size() || !lanes_[id].active) return Broken(id, "has work, but never started");
  if (worked_[id]) return Broken(id, "has work twice in one step");
  worked_[id] = true;
  Lane& lane = lanes_[id];
  // The first work may begin behind a reused prefix.
  if (lane.length != 0 && work.start() != lane.length) {
    return Broken(id, "start is ", work.start(), ", its KV ends at ", lane.length);
  }
  if (work.count() < 1) return Broken(id, "count is 0");
  absl::Status status = CheckTokens(work, lane);
  if (status.ok()) {
    status = slots.Append(static_cast<int>(id),
                          {work.new_blocks().data(), static_cast<size_t>(work.new_blocks_size())});
  }
  if (!status.ok()) return status;
  const int64_t end = int64_t{work.start()} + work.count();
  const int64_t room =
      std::min(slots.blocks(static_cast<int>(id)) * kBlockPositions, limits_.max_context);
  if (end > room) {
    return Broken(id, "rows up to position ", end, ", its blocks and the context hold ", room);
  }
  lane.length = end;
  lane.token_ready = work.sample();
  lane.sampled += work.sample();
  if (!work.decode()) lane.lag_ready = false;
  return absl::OkStatus();
}

}  // namespace asynctls
