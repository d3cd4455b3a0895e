// SPDX-License-Identifier: Apache-2.0
// KvPool: the KV memory of one rank, one allocation. Slots are all there is here; which block lies
// in which slot is SlotTable's knowledge.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/kv/kv_layout.h"
#include "kernels/device/buffer.h"

namespace asynctls {

class KvPool {
 public:
  // `slots` blocks of every layer. Requires: slots >= 1. Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<KvPool> Create(const KvLayout& layout, int64_t slots, MemoryKind kind);

  // [slots, G, P, 2D] of one layer.
  View<bf16, 4> Rows(int layer) const;

  const KvLayout& layout() const { return layout_; }
  int64_t slots() const { return slots_; }

 private:
  KvPool(const KvLayout& layout, int64_t slots, Buffer arena);

  KvLayout layout_;
  int64_t slots_;
  Buffer arena_;
};

}  // namespace asynctls
