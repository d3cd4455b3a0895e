// SPDX-License-Identifier: Apache-2.0
#include "engine/blocks/block_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls {
namespace {

using ::testing::ElementsAre;

TEST(BlockTable, ReturnsItsBlocksWhenDestroyed) {
  BlockAllocator allocator(4);
  {
    BlockTable table(allocator);
    table.Grow();
    table.Grow();
    EXPECT_THAT(table.ids(), ElementsAre(0, 1));
    EXPECT_EQ(allocator.used(), 2);
  }
  EXPECT_EQ(allocator.free(), 4);
}

TEST(BlockTable, SharesAdoptedBlocks) {
  BlockAllocator allocator(4);
  BlockTable first(allocator);
  first.Grow();
  allocator.SetName(0, {1, 1}, {5, 6});
  BlockTable second(allocator);
  second.Adopt(0);
  second.Grow();
  EXPECT_THAT(second.ids(), ElementsAre(0, 1));
  EXPECT_EQ(allocator.references(0), 2);
  first.Clear();
  EXPECT_EQ(first.size(), 0);
  EXPECT_EQ(allocator.used(), 2);
}

TEST(BlockTable, TheEndOfAPrefixIsEvictedBeforeItsStart) {
  BlockAllocator allocator(2);
  {
    BlockTable table(allocator);
    table.Grow();
    table.Grow();
    allocator.SetName(0, {1, 1}, {1});
    allocator.SetName(1, {2, 2}, {2});
  }
  EXPECT_EQ(allocator.Allocate(), 1);
}

}  // namespace
}  // namespace asynctls
