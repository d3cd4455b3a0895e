// SPDX-License-Identifier: Apache-2.0
#include "engine/kv/kv_pool.h"

#include <utility>

namespace asynctls {

absl::StatusOr<KvPool> KvPool::Create(const KvLayout& layout, int64_t slots, MemoryKind kind) {
  absl::StatusOr<Buffer> arena = Buffer::Allocate(kind, layout.BlockBytes() * slots);
  if (!arena.ok()) return arena.status();
  return KvPool(layout, slots, *std::move(arena));
}

KvPool::KvPool(const KvLayout& layout, int64_t slots, Buffer arena)
    : layout_(layout), slots_(slots), arena_(std::move(arena)) {}

View<bf16, 4> KvPool::Rows(int layer) const {
  assert(layer >= 0 && layer < layout_.layers);
  return arena_.ViewAt<bf16, 4>(layer * slots_ * layout_.LayerBlockBytes(),
                                {slots_, layout_.kv_heads, kBlockPositions, 2 * layout_.head_dim});
}

}  // namespace asynctls
