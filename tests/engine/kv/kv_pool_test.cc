// SPDX-License-Identifier: Apache-2.0
#include "engine/kv/kv_pool.h"

#include <gtest/gtest.h>

namespace asynctls {
namespace {

TEST(KvLayoutTest, CountsBytes) {
  const KvLayout layout{.layers = 36, .kv_heads = 8, .head_dim = 128};  // Qwen3-8B
  EXPECT_EQ(layout.RowBytes(), 512);
  EXPECT_EQ(layout.TokenBytes(), 147456);
  EXPECT_EQ(layout.LayerBlockBytes(), 262144);
  EXPECT_EQ(layout.BlockBytes(), 64 * 147456);
  EXPECT_EQ(BlocksFor(0), 0);
  EXPECT_EQ(BlocksFor(1), 1);
  EXPECT_EQ(BlocksFor(64), 1);
  EXPECT_EQ(BlocksFor(65), 2);
}

TEST(KvPoolTest, LayersDoNotOverlap) {
  const KvLayout layout{.layers = 3, .kv_heads = 2, .head_dim = 16};
  absl::StatusOr<KvPool> pool = KvPool::Create(layout, 5, MemoryKind::kHost);
  ASSERT_TRUE(pool.ok());
  for (int layer = 0; layer < 3; ++layer) {
    const View<bf16, 4> rows = pool->Rows(layer);
    EXPECT_EQ(rows.shape, (std::array<int64_t, 4>{5, 2, 64, 32}));
    EXPECT_EQ(rows.bytes(), 5 * layout.LayerBlockBytes());
    if (layer > 0) {
      EXPECT_EQ(rows.data, pool->Rows(layer - 1).data + rows.size());
    }
  }
  pool->Rows(2)(4, 1, 63, 31) = ToBf16(1);  // the last value is inside
}

TEST(KvPoolTest, SaysHowMuchItCouldNotGet) {
  const KvLayout layout{.layers = 64, .kv_heads = 64, .head_dim = 1024};
  EXPECT_EQ(KvPool::Create(layout, int64_t{1} << 30, MemoryKind::kHost).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace asynctls
