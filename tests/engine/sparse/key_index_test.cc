// SPDX-License-Identifier: Apache-2.0
#include "engine/sparse/key_index.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/ref/ref_ops.h"

namespace asynctls {
namespace {

KeyIndexShape Shape() { return {.layers = 4, .first_layer = 2, .kv_heads = 2, .head_dim = 16}; }

TEST(KeyIndexTest, HasCodesForSparseLayersOnly) {
  KeyIndexShape shape = Shape();
  EXPECT_EQ(shape.SparseLayers(), 2);
  EXPECT_EQ(shape.CodeBytesPerToken(), 2 * 2 * 16);
  shape.first_layer = 9;
  EXPECT_EQ(shape.SparseLayers(), 0);
  EXPECT_EQ(KeyIndex::Bytes(shape, 1000), 0);
}

TEST(KeyIndexTest, HoldsSixteenBytesPerTokenAndHead) {
  const KeyIndexShape shape = Shape();
  EXPECT_EQ(KeyIndex::Bytes(shape, 100) - KeyIndex::Bytes(shape, 0), 100 * 64 * 2 * 2 * 16);
  absl::StatusOr<KeyIndex> index = KeyIndex::Create(shape, 100, MemoryKind::kHost);
  ASSERT_TRUE(index.ok());
  EXPECT_EQ(index->codes(3).first.bytes(), 100 * 64 * 2 * 8);
  EXPECT_EQ(index->codes(3).second.bytes(), 100 * 64 * 2 * 8);
  EXPECT_NE(index->codes(2).first.data, index->codes(3).first.data);
}

TEST(KeyIndexTest, CopiesTables) {
  absl::StatusOr<KeyIndex> index = KeyIndex::Create(Shape(), 1, MemoryKind::kHost);
  ASSERT_TRUE(index.ok());
  EXPECT_TRUE(index->table(2).encode.empty());  // its keys are not coded yet
  const int r = kCodeDirections;
  std::vector<float> encode(2 * 16 * r), offset(2 * r), turn(2 * 16 * r, 3.0f);
  std::iota(encode.begin(), encode.end(), 0.0f);
  offset[r] = 5;
  RefOps ops;
  index->SetTable(ops,
                  2,
                  {.encode = {encode.data(), {2, 16, r}},
                   .offset = {offset.data(), {2, r}},
                   .turn = {turn.data(), {2, 16, r}}});
  const KeyCodeTable table = index->table(2);
  EXPECT_EQ(table.encode(1, 15, r - 1), encode.back());
  EXPECT_EQ(table.offset(1, 0), 5);
  EXPECT_EQ(table.turn(0, 0, 0), 3);
  EXPECT_TRUE(index->table(3).encode.empty());
}

TEST(KeyIndexTest, KeepsThePapersIndexIfAsked) {
  KeyIndexShape shape = Shape();
  shape.bound = true;
  shape.bound_channels = 8;
  absl::StatusOr<KeyIndex> index = KeyIndex::Create(shape, 3, MemoryKind::kHost);
  ASSERT_TRUE(index.ok());
  std::vector<int32_t> channels(2 * 8);
  std::iota(channels.begin(), channels.end(), 0);
  RefOps ops;
  index->SetChannels(ops, 3, {channels.data(), {2, 8}});
  const BoundIndex bound = index->bound(3);
  EXPECT_EQ(bound.channels(1, 7), 15);
  EXPECT_EQ(bound.range.shape, (std::array<int64_t, 4>{3, 2, 2, 16}));
  EXPECT_EQ(bound.code.shape, (std::array<int64_t, 4>{3, 2, 64, 4}));
  EXPECT_EQ(shape.ChannelBytes(), 4 + 4);
}

}  // namespace
}  // namespace asynctls
