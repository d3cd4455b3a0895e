// SPDX-License-Identifier: Apache-2.0
// BlockAllocator: logical block ids, their reference counts, and the index of named (full,
// immutable) blocks that makes prefix reuse. It knows no sequence and no memory. Engine thread
// only.
//
// A block is in exactly one state:
//   free    no name, no reference
//   used    references > 0, named or not
//   cached  named, no reference: found by Find until evicted
// free + cached + used == total, always.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "engine/base/ids.h"
#include "engine/blocks/block_name.h"

namespace asynctls {

class BlockAllocator {
 public:
  explicit BlockAllocator(uint32_t total);
  BlockAllocator(const BlockAllocator&) = delete;

  // A block with one reference: a free one, else the least recently released cached one, which
  // loses its name. Requires: available() > 0.
  BlockId Allocate();

  // The block that holds `tokens` under `name`, used or cached. The tokens are compared, so a hash
  // collision is a miss.
  std::optional<BlockId> Find(const BlockName& name, absl::Span<const Token> tokens) const;

  // One more reference to a block that Find returned.
  void Share(BlockId block);

  // One reference less. The last one makes a named block cached (most recent), another free.
  // Releasing a chain from its end to its start makes its end the first to be evicted.
  void Release(BlockId block);

  // Names a used block, which must not change any more. Ignored when another block has that name
  // already: the copy stays private to its sequence. Requires: used, unnamed.
  void SetName(BlockId block, const BlockName& name, absl::Span<const Token> tokens);

  uint32_t references(BlockId block) const { return blocks_[block].references; }
  int64_t total() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t cached() const { return cached_; }
  int64_t used() const { return total() - free() - cached(); }
  int64_t available() const { return free() + cached(); }

  // Walks everything and aborts on a broken invariant. For tests.
  void CheckInvariants() const;

 private:
  static constexpr BlockId kNone = UINT32_MAX;

  struct Block {
    uint32_t references = 0;
    std::optional<BlockName> name;
    std::vector<Token> tokens;             // of a named block
    BlockId newer = kNone, older = kNone;  // links of the cached list
  };

  void LinkNewest(BlockId block);
  void Unlink(BlockId block);

  std::vector<Block> blocks_;
  std::vector<BlockId> free_;  // a stack, lowest id on top at first
  absl::flat_hash_map<BlockName, BlockId> index_;
  BlockId newest_ = kNone, oldest_ = kNone;  // ends of the cached list
  int64_t cached_ = 0;
};

}  // namespace asynctls
