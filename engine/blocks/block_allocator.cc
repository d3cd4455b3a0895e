// SPDX-License-Identifier: Apache-2.0
// Reference counts, the name index and the list of cached blocks in order of release.
#include "engine/blocks/block_allocator.h"

#include <algorithm>

#include "engine/base/check.h"

namespace asynctls {

BlockAllocator::BlockAllocator(uint32_t total) : blocks_(total) {
  free_.reserve(total);
  for (BlockId id = total; id > 0; --id) free_.push_back(id - 1);
}

BlockId BlockAllocator::Allocate() {
  ASYNCTLS_CHECK(available() > 0);
  BlockId id;
  if (!free_.empty()) {
    id = free_.back();
    free_.pop_back();
  } else {
    id = oldest_;
    Unlink(id);
    index_.erase(*blocks_[id].name);
    blocks_[id].name.reset();
    blocks_[id].tokens.clear();
  }
  blocks_[id].references = 1;
  return id;
}

std::optional<BlockId> BlockAllocator::Find(const BlockName& name,
                                            absl::Span<const Token> tokens) const {
  const auto it = index_.find(name);
  if (it == index_.end() || blocks_[it->second].tokens != tokens) return std::nullopt;
  return it->second;
}

void BlockAllocator::Share(BlockId id) {
  Block& block = blocks_[id];
  ASYNCTLS_CHECK(block.name.has_value());
  if (block.references++ == 0) Unlink(id);
}

void BlockAllocator::Release(BlockId id) {
  Block& block = blocks_[id];
  ASYNCTLS_CHECK(block.references > 0);
  if (--block.references > 0) return;
  if (block.name.has_value()) {
    LinkNewest(id);
  } else {
    free_.push_back(id);
  }
}

void BlockAllocator::SetName(BlockId id, const BlockName& name, absl::Span<const Token> tokens) {
  Block& block = blocks_[id];
  ASYNCTLS_CHECK(block.references > 0 && !block.name.has_value());
  if (!index_.try_emplace(name, id).second) return;
  block.name = name;
  block.tokens.assign(tokens.begin(), tokens.end());
}

void BlockAllocator::LinkNewest(BlockId id) {
  Block& block = blocks_[id];
  block.older = newest_;
  block.newer = kNone;
  (newest_ == kNone ? oldest_ : blocks_[newest_].newer) = id;
  newest_ = id;
  ++cached_;
}

void BlockAllocator::Unlink(BlockId id) {
  Block& block = blocks_[id];
  (block.newer == kNone ? newest_ : blocks_[block.newer].older) = block.older;
  (block.older == kNone ? oldest_ : blocks_[block.older].newer) = block.newer;
  block.newer = block.older = kNone;
  --cached_;
}

void BlockAllocator::CheckInvariants() const {
  int64_t used = 0, cached = 0, named = 0;
  for (BlockId id = 0; id < blocks_.size(); ++id) {
    const Block& block = blocks_[id];
    used += block.references > 0;
    cached += block.references == 0 && block.name.has_value();
    named += block.name.has_value();
    ASYNCTLS_CHECK(block.name.has_value() == !block.tokens.empty());
    if (block.name.has_value()) ASYNCTLS_CHECK(index_.at(*block.name) == id);
  }
  ASYNCTLS_CHECK(used == this->used());
  ASYNCTLS_CHECK(cached == this->cached());
  ASYNCTLS_CHECK(named == static_cast<int64_t>(index_.size()));
  ASYNCTLS_CHECK(free() + cached + used == total());
  int64_t linked = 0;
  for (BlockId id = oldest_; id != kNone; id = blocks_[id].newer) {
    ASYNCTLS_CHECK(blocks_[id].references == 0);
    ++linked;
  }
  ASYNCTLS_CHECK(linked == cached);
  std::vector<BlockId> free = free_;
  std::sort(free.begin(), free.end());
  ASYNCTLS_CHECK(std::adjacent_find(free.begin(), free.end()) == free.end());
  for (BlockId id : free) ASYNCTLS_CHECK(blocks_[id].references == 0 && !blocks_[id].name);
}

}  // namespace asynctls
