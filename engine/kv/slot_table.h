// SPDX-License-Identifier: Apache-2.0
// SlotTable: the device half's mirror of the block tables, one array [lanes, M] that ops index with
// position / P. It changes only by the deltas of a StepPlan. While nothing is offloaded a block's
// slot is its logical id, so the array holds block ids; a residency map would stand between the
// two, here and nowhere else. The table is kept on the host and sent where the backend computes.
// Threading: its worker's thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/mirror.h"

namespace asynctls {

class SlotTable {
 public:
  // Lanes of up to `max_blocks` blocks each, ids below `slots`; `kind`: where the backend computes.
  // Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<SlotTable> Create(int lanes,
                                          int64_t max_blocks,
                                          int64_t slots,
                                          MemoryKind kind);
  static int64_t Bytes(int lanes, int64_t max_blocks) {
    return lanes * max_blocks * static_cast<int64_t>(sizeof(int32_t));
  }

  // Appends logical blocks to a lane's table. Lanes may share blocks (prefix reuse). Errors:
  // INVALID_ARGUMENT for an id that does not exist or a table longer than M. Requires: lane exists.
  absl::Status Append(int lane, std::span<const uint32_t> blocks);

  // Forgets a lane's table.
  void Release(int lane) { used_[lane] = sent_[lane] = 0; }

  // Sends what was appended since the last call.
  template <class B>
  void Upload(B& ops) {
    for (size_t lane = 0; lane < used_.size(); ++lane) {
      if (sent_[lane] == used_[lane]) continue;
      memory_.Upload(
          ops, table_[static_cast<int64_t>(lane)].Slice(sent_[lane], used_[lane] - sent_[lane]));
      sent_[lane] = used_[lane];
    }
  }

  // Blocks in a lane's table.
  int64_t blocks(int lane) const { return used_[lane]; }
  // [lanes, M] where the backend computes, and the host's; entries at and after blocks(lane) are
  // meaningless.
  View<const int32_t, 2> view() const { return memory_.Device(table_); }
  View<const int32_t, 2> host() const { return table_; }

 private:
  SlotTable(Mirror memory, int lanes, int64_t max_blocks, int64_t slots);

  int64_t slots_;
  Mirror memory_;
  View<int32_t, 2> table_;
  std::vector<int64_t> used_, sent_;  // blocks of a lane, and how many of them the backend has
};

}  // namespace asynctls
