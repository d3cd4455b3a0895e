// SPDX-License-Identifier: Apache-2.0
#include "engine/kv/slot_table.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace asynctls {

absl::StatusOr<SlotTable> SlotTable::Create(int lanes,
                                            int64_t max_blocks,
                                            int64_t slots,
                                            MemoryKind kind) {
  absl::StatusOr<Mirror> memory = Mirror::Create(kind, Bytes(lanes, max_blocks));
  if (!memory.ok()) return memory.status();
  return SlotTable(*std::move(memory), lanes, max_blocks, slots);
}

SlotTable::SlotTable(Mirror memory, int lanes, int64_t max_blocks, int64_t slots)
    : slots_(slots),
      memory_(std::move(memory)),
      table_(memory_.host().ViewAt<int32_t, 2>(0, {lanes, max_blocks})),
      used_(static_cast<size_t>(lanes)),
      sent_(used_) {}

absl::Status SlotTable::Append(int lane, std::span<const uint32_t> blocks) {
  int64_t& used = used_[lane];
  if (used + static_cast<int64_t>(blocks.size()) > table_.dim(1)) {
    return absl::InvalidArgumentError(absl::StrCat("lane ",
                                                   lane,
                                                   ": ",
                                                   used,
                                                   " + ",
                                                   blocks.size(),
                                                   " blocks, over the limit of ",
                                                   table_.dim(1)));
  }
  for (const uint32_t block : blocks) {
    if (block >= slots_) {
      return absl::InvalidArgumentError(
          absl::StrCat("lane ", lane, ": block ", block, ", but there are ", slots_));
    }
    table_(lane, used++) = static_cast<int32_t>(block);
  }
  return absl::OkStatus();
}

}  // namespace asynctls
