// SPDX-License-Identifier: Apache-2.0
#include "engine/model/activations.h"

#include <gtest/gtest.h>

#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

TEST(ActivationsTest, SizesFollowTheRank) {
  const ModelConfig config = *ParseModelConfig(TinyModel().config, "config.json", Json(), "");
  absl::StatusOr<RankShape> shape = RankShape::Of(config, {0, 2});
  ASSERT_TRUE(shape.ok());
  absl::StatusOr<Activations> a =
      Activations::Create(*shape, {.rows = 10, .logit_rows = 3, .ranks = 2}, MemoryKind::kHost);
  ASSERT_TRUE(a.ok());
  EXPECT_EQ(a->residual.shape, (std::array<int64_t, 2>{10, 32}));
  EXPECT_EQ(a->qkv.shape, (std::array<int64_t, 2>{10, (2 + 2) * 32}));
  EXPECT_EQ(a->gate_up.shape, (std::array<int64_t, 2>{10, 48}));
  EXPECT_EQ(a->logits.shape, (std::array<int64_t, 2>{3, 34}));
  EXPECT_EQ(a->all_logits.shape, (std::array<int64_t, 2>{3, 68}));
  // The last one ends inside the arena that Bytes announced.
  const char* begin = reinterpret_cast<const char*>(a->residual.data);
  const char* end = reinterpret_cast<const char*>(a->all_logits.data) + a->all_logits.bytes();
  EXPECT_LE(end - begin, Activations::Bytes(*shape, {.rows = 10, .logit_rows = 3, .ranks = 2}));
}

TEST(RankShapeTest, NamesWhatRanksDoNotDivide) {
  const ModelConfig config = *ParseModelConfig(TinyModel().config, "config.json", Json(), "");
  EXPECT_EQ(std::string(RankShape::Of(config, {0, 4}).status().message()),
            "num_key_value_heads is 2, not divisible by the 4 tensor-parallel ranks");
}

}  // namespace
}  // namespace asynctls
