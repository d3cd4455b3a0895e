// SPDX-License-Identifier: Apache-2.0
// BlockTable: the blocks of one sequence in order of position; the authoritative one (the device's
// mirror follows plan deltas). Holds one reference per block and returns them when destroyed.
// Engine thread only.
#pragma once

#include <vector>

#include "engine/base/ids.h"
#include "engine/blocks/block_allocator.h"

namespace asynctls {

class BlockTable {
 public:
  // `allocator` outlives the table.
  explicit BlockTable(BlockAllocator& allocator) : allocator_(&allocator) {}
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;
  ~BlockTable() { Clear(); }

  // Appends a new block. Requires: allocator.available() > 0.
  void Grow();
  // Appends a block that Find returned, shared with whoever holds it.
  void Adopt(BlockId block);
  // Returns all blocks, the last one first, so that a prefix outlives what hangs on it.
  void Clear();

  const std::vector<BlockId>& ids() const { return ids_; }
  size_t size() const { return ids_.size(); }

 private:
  BlockAllocator* allocator_;
  std::vector<BlockId> ids_;
};

}  // namespace asynctls
