// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/padded_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace asynctls {
namespace {

TEST(PaddedRowsTest, RoundsUpToFewSizes) {
  std::set<int64_t> sizes;
  for (int64_t rows = 0; rows <= 200; ++rows) {
    sizes.insert(PaddedRows(rows));
    EXPECT_GE(PaddedRows(rows), rows);
    EXPECT_EQ(PaddedRows(PaddedRows(rows)), PaddedRows(rows));
  }
  EXPECT_THAT(sizes, ::testing::ElementsAre(0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256));
}

TEST(PaddedRowsTest, MostIsReachedByTwoGroups) {
  EXPECT_EQ(MostPaddedRows(1), 1);
  EXPECT_EQ(MostPaddedRows(3), 4);
  EXPECT_EQ(MostPaddedRows(32), 40);  // 17 and 15, or 9 and 23
  for (int64_t first = 0; first <= 50; ++first) {
    EXPECT_LE(PaddedRows(first) + PaddedRows(50 - first), MostPaddedRows(50));
  }
}

}  // namespace
}  // namespace asynctls
