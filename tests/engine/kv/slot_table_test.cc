// SPDX-License-Identifier: Apache-2.0
#include "engine/kv/slot_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls {
namespace {

using ::testing::HasSubstr;

class SlotTableTest : public ::testing::Test {
 protected:
  absl::Status Append(int lane, std::vector<uint32_t> blocks) {
    return table_->Append(lane, blocks);
  }
  absl::StatusOr<SlotTable> table_ = SlotTable::Create(2, 3, 10, MemoryKind::kHost);
};

TEST_F(SlotTableTest, AppendsAndReleases) {
  ASSERT_TRUE(Append(0, {7, 9}).ok());
  ASSERT_TRUE(Append(1, {7}).ok());  // shared with lane 0
  ASSERT_TRUE(Append(0, {2}).ok());
  EXPECT_EQ(table_->blocks(0), 3);
  EXPECT_EQ(table_->view()(0, 0), 7);
  EXPECT_EQ(table_->view()(0, 2), 2);
  EXPECT_EQ(table_->view()(1, 0), 7);
  table_->Release(0);
  EXPECT_EQ(table_->blocks(0), 0);
  EXPECT_EQ(table_->blocks(1), 1);
  ASSERT_TRUE(Append(0, {1}).ok());
  EXPECT_EQ(table_->view()(0, 0), 1);
}

TEST_F(SlotTableTest, NamesLaneAndLimit) {
  EXPECT_THAT(std::string(Append(1, {1, 2, 3, 4}).message()),
              HasSubstr("lane 1: 0 + 4 blocks, over the limit of 3"));
  EXPECT_THAT(std::string(Append(1, {10}).message()),
              HasSubstr("lane 1: block 10, but there are 10"));
}

}  // namespace
}  // namespace asynctls
