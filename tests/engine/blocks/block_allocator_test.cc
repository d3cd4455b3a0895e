// SPDX-License-Identifier: Apache-2.0
#include "engine/blocks/block_allocator.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace asynctls {
namespace {

BlockName Name(uint64_t n) { return {n, ~n}; }
std::vector<Token> Tokens(uint32_t n) { return {n, n + 1}; }

// A cached block named n.
BlockId Cache(BlockAllocator& allocator, uint32_t n) {
  const BlockId block = allocator.Allocate();
  allocator.SetName(block, Name(n), Tokens(n));
  allocator.Release(block);
  return block;
}

TEST(BlockAllocator, EveryBlockIsHandedOutOnceLowestFirst) {
  BlockAllocator allocator(3);
  for (BlockId expected = 0; expected < 3; ++expected) EXPECT_EQ(allocator.Allocate(), expected);
  EXPECT_EQ(allocator.available(), 0);
  EXPECT_EQ(allocator.used(), 3);
  allocator.Release(1);
  EXPECT_EQ(allocator.Allocate(), 1);
  allocator.CheckInvariants();
}

TEST(BlockAllocator, UnnamedBlocksBecomeFreeNamedOnesCached) {
  BlockAllocator allocator(4);
  allocator.Release(allocator.Allocate());
  const BlockId block = Cache(allocator, 7);
  EXPECT_EQ(allocator.free(), 3);
  EXPECT_EQ(allocator.cached(), 1);
  EXPECT_EQ(allocator.used(), 0);
  EXPECT_EQ(allocator.Find(Name(7), Tokens(7)), block);
  allocator.Share(block);
  EXPECT_EQ(allocator.used(), 1);
  EXPECT_EQ(allocator.cached(), 0);
  allocator.Share(block);
  EXPECT_EQ(allocator.references(block), 2);
  allocator.Release(block);
  EXPECT_EQ(allocator.used(), 1);
  allocator.Release(block);
  EXPECT_EQ(allocator.cached(), 1);
  allocator.CheckInvariants();
}

TEST(BlockAllocator, CollisionOfNamesIsAMiss) {
  BlockAllocator allocator(2);
  Cache(allocator, 7);
  EXPECT_FALSE(allocator.Find(Name(7), Tokens(8)).has_value());
  EXPECT_FALSE(allocator.Find(Name(8), Tokens(7)).has_value());
}

TEST(BlockAllocator, ASecondBlockOfANameStaysPrivate) {
  BlockAllocator allocator(3);
  const BlockId first = Cache(allocator, 7);
  const BlockId second = allocator.Allocate();
  allocator.SetName(second, Name(7), Tokens(7));
  EXPECT_EQ(allocator.Find(Name(7), Tokens(7)), first);
  allocator.Release(second);
  EXPECT_EQ(allocator.free(), 2);
  EXPECT_EQ(allocator.cached(), 1);
  allocator.CheckInvariants();
}

TEST(BlockAllocator, EvictsTheLeastRecentlyReleasedWhenNothingIsFree) {
  BlockAllocator allocator(3);
  const BlockId a = Cache(allocator, 1);
  const BlockId b = Cache(allocator, 2);
  const BlockId c = Cache(allocator, 3);
  allocator.Share(a);  // a is used again: b is now the oldest
  allocator.Release(a);
  EXPECT_EQ(allocator.Allocate(), b);
  EXPECT_FALSE(allocator.Find(Name(2), Tokens(2)).has_value());
  EXPECT_EQ(allocator.Allocate(), c);
  EXPECT_EQ(allocator.Find(Name(1), Tokens(1)), a);
  EXPECT_EQ(allocator.Allocate(), a);
  EXPECT_EQ(allocator.available(), 0);
  allocator.CheckInvariants();
}

TEST(BlockAllocator, RandomUseKeepsTheInvariants) {
  std::mt19937 random(1);
  BlockAllocator allocator(50);
  std::vector<BlockId> held;
  for (int i = 0; i < 20000; ++i) {
    const uint32_t n = random() % 40;
    switch (random() % 4) {
      case 0:
        if (allocator.available() > 0) held.push_back(allocator.Allocate());
        break;
      case 1: {
        const auto hit = allocator.Find(Name(n), Tokens(n));
        if (hit.has_value()) {
          allocator.Share(*hit);
          held.push_back(*hit);
        } else if (allocator.available() > 0) {
          held.push_back(allocator.Allocate());
          allocator.SetName(held.back(), Name(n), Tokens(n));
        }
        break;
      }
      default:
        if (!held.empty()) {
          std::swap(held[random() % held.size()], held.back());
          allocator.Release(held.back());
          held.pop_back();
        }
    }
    if (i % 100 == 0) allocator.CheckInvariants();
    ASSERT_EQ(allocator.used(), std::set<BlockId>(held.begin(), held.end()).size());
  }
}

TEST(BlockAllocatorDeathTest, MisuseStops) {
  BlockAllocator allocator(1);
  const BlockId block = allocator.Allocate();
  EXPECT_DEATH(allocator.Allocate(), "available");
  EXPECT_DEATH(allocator.Share(block), "name");
  allocator.Release(block);
  EXPECT_DEATH(allocator.Release(block), "references");
}

}  // namespace
}  // namespace asynctls
