// SPDX-License-Identifier: Apache-2.0
// Appending to and returning a sequence's blocks.
#include "engine/blocks/block_table.h"

namespace asynctls {

void BlockTable::Grow() { ids_.push_back(allocator_->Allocate()); }

void BlockTable::Adopt(BlockId block) {
  allocator_->Share(block);
  ids_.push_back(block);
}

void BlockTable::Clear() {
  while (!ids_.empty()) {
    allocator_->Release(ids_.back());
    ids_.pop_back();
  }
}

}  // namespace asynctls
