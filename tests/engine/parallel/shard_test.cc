// SPDX-License-Identifier: Apache-2.0
#include "engine/parallel/shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls {
namespace {

using ::testing::HasSubstr;

TEST(ShardTest, EvenPartsCoverEverythingOnce) {
  int64_t next = 0;
  for (int rank = 0; rank < 4; ++rank) {
    const Shard::Range range = Shard{rank, 4}.Even(24);
    EXPECT_EQ(range.begin, next);
    EXPECT_EQ(range.count(), 6);
    next = range.end;
  }
  EXPECT_EQ(next, 24);
}

TEST(ShardTest, PaddedPartsCoverEverythingOnceAndMayBeEmpty) {
  EXPECT_EQ((Shard{0, 4}).PaddedRows(67), 17);
  EXPECT_EQ((Shard{3, 4}).Padded(67).begin, 51);
  EXPECT_EQ((Shard{3, 4}).Padded(67).count(), 16);
  EXPECT_EQ((Shard{3, 4}).Padded(5).count(), 0);  // 2 + 2 + 1 + 0
}

TEST(ShardTest, NamesImpossibleSizes) {
  EXPECT_TRUE((Shard{1, 2}).Check("num_key_value_heads", 2).ok());
  EXPECT_THAT(std::string((Shard{0, 4}).Check("num_key_value_heads", 2).message()),
              HasSubstr("num_key_value_heads is 2, not divisible by the 4"));
  EXPECT_FALSE((Shard{2, 2}).Check("x", 2).ok());
  EXPECT_FALSE((Shard{-1, 2}).Check("x", 2).ok());
  EXPECT_FALSE((Shard{0, 0}).Check("x", 2).ok());
  EXPECT_FALSE((Shard{0, 65}).Check("x", 65).ok());
}

}  // namespace
}  // namespace asynctls
