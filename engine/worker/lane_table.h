// SPDX-License-Identifier: Apache-2.0
// LaneTable: what a rank remembers of the sequences in flight, one entry per lane, changed only by
// plans. It is also where the plan's contract is checked: whatever breaks it is an error here, so
// that nothing behind this file meets an impossible row. Threading: its worker's thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/kv/slot_table.h"

namespace asynctls {

struct LaneLimits {
  int lanes = 0;
  int64_t step_tokens = 0;  // rows of one step
  int64_t max_context = 0;  // positions of one lane
  int vocab = 0;            // rows of the embedding
  uint32_t max_budget = 0;
  bool bound_selector = false;
};

// Most ids of one lane with a bias, and most that min_tokens bans.
inline constexpr int kMaxLogitBias = 1024;
inline constexpr int kMaxSuppressedIds = 512;

struct Lane {
  bool active = false;
  int64_t length = 0;        // positions whose KV is written
  bool token_ready = false;  // last_token[lane] is the token at position `length`
  uint32_t sampled = 0;      // tokens so far, with the step being packed
  bool lag_ready = false;    // the lagged blocks of the last decode row are there
  v1::SamplingParams sampling;
  v1::SparseParams sparse;
};

class LaneTable {
 public:
  explicit LaneTable(const LaneLimits& limits)
      : limits_(limits), lanes_(limits.lanes), worked_(limits.lanes) {}

  // Drops the released lanes, starts the new ones, appends their blocks to `slots`, and checks and
  // books the work. Errors: INVALID_ARGUMENT naming lane, field and limit; the tables are then no
  // longer those of the scheduler and the rank is of no more use.
  absl::Status Apply(const v1::StepPlan& plan, SlotTable& slots);

  Lane& lane(uint32_t i) { return lanes_[i]; }

 private:
  absl::Status Release(uint32_t lane, SlotTable& slots);
  absl::Status Start(const v1::LaneStart& start);
  absl::Status Book(const v1::LaneWork& work, SlotTable& slots);
  absl::Status CheckTokens(const v1::LaneWork& work, const Lane& lane) const;

  const LaneLimits limits_;
  std::vector<Lane> lanes_;
  std::vector<bool> worked_;  // in the plan being applied
};

}  // namespace asynctls
