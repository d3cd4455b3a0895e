// SPDX-License-Identifier: Apache-2.0
// The exact arithmetic itself, and its vector forms on the CPU bit for bit.
#include "kernels/ref/exact.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/cpu/encode_keys.h"
#include "kernels/ref/selection.h"
#include "tests/testing/sparse_problem.h"

namespace asynctls {
namespace {

TEST(ExactTest, FixedExp2) {
  EXPECT_EQ(FixedExp2(0.0f), kFixedOne);
  EXPECT_EQ(FixedExp2(-0.0f), kFixedOne);
  EXPECT_EQ(FixedExp2(3.0f), kFixedOne);
  EXPECT_EQ(FixedExp2(-1.0f), kFixedOne / 2);
  EXPECT_EQ(FixedExp2(-24.0f), 1u);
  EXPECT_EQ(FixedExp2(-24.01f), 0u);
  EXPECT_EQ(FixedExp2(-std::numeric_limits<float>::infinity()), 0u);
  EXPECT_EQ(FixedExp2(std::nanf("")), 0u);
  for (float y = -24.0f; y < 0.0f; y += 0.00137f) {
    const double expected = std::exp2(static_cast<double>(y)) * kFixedOne;
    ASSERT_NEAR(FixedExp2(y), expected, 0.6 + expected * 2e-7) << y;
    ASSERT_LE(FixedExp2(y), kFixedOne);
  }
}

TEST(ExactTest, OrderedKeyOrdersLikeTheScores) {
  const float inf = std::numeric_limits<float>::infinity();
  const float sorted[] = {-inf, -3e38f, -1.0f, -1e-45f, 0.0f, 1e-45f, 1.0f, 3e38f, inf};
  for (size_t i = 1; i < std::size(sorted); ++i) {
    EXPECT_LT(OrderedKey(sorted[i - 1]), OrderedKey(sorted[i])) << sorted[i];
  }
  EXPECT_EQ(OrderedKey(-0.0f), OrderedKey(0.0f));
  EXPECT_LT(OrderedKey(std::nanf("")), OrderedKey(-inf));
  EXPECT_LT(OrderedKey(inf), kForcedKey);
  EXPECT_GT(RankKey(true, -5.0f, 9), RankKey(false, inf, 0));
  EXPECT_GT(RankKey(false, 1.0f, 3), RankKey(false, 1.0f, 4));
  EXPECT_GT(RankKey(true, 1.0f, 3), RankKey(true, 2.0f, 4));
  EXPECT_EQ(RankedIndex(RankKey(false, -2.0f, 123456)), 123456);
  EXPECT_TRUE(RankIsForced(RankKey(true, 0.0f, 7)));
  EXPECT_FALSE(RankIsForced(RankKey(false, inf, 7)));
}

TEST(ExactTest, CodesClampAndNanIsTheMiddle) {
  EXPECT_EQ(CodeOf(0.0f), 8);
  EXPECT_EQ(CodeOf(-0.001f), 7);
  EXPECT_EQ(CodeOf(0.999f), 8);
  EXPECT_EQ(CodeOf(7.5f), 15);
  EXPECT_EQ(CodeOf(-8.0f), 0);
  EXPECT_EQ(CodeOf(1e30f), 15);
  EXPECT_EQ(CodeOf(-std::numeric_limits<float>::infinity()), 0);
  EXPECT_EQ(CodeOf(std::numeric_limits<float>::infinity()), 15);
  EXPECT_EQ(CodeOf(std::nanf("")), 8);
}

TEST(ExactTest, CodesArePackedAsDescribed) {
  testing::SparseProblem p({.length = 64}, 5);
  std::vector<uint8_t> code(kCodeDirections);
  std::vector<int8_t> code8(kCodeDirections);
  for (int i = 0; i < 100; ++i) {
    int first = 0, whole = 0;
    for (int c = 0; c < kCodeDirections; ++c) {
      code[c] = static_cast<uint8_t>(p.random() % 16);
      code8[c] = static_cast<int8_t>(static_cast<int>(p.random() % 255) - 127);
      whole += code8[c] * (2 * code[c] - 15);
      if (c < 8) first += code8[c] * (2 * code[c] - 15);
      if (c >= 8 && c < 24) first += code8[c] * (8 * (code[c] >> 2) - 12);
    }
    StoreCode(code.data(), p.codes, 0, 1, 9);
    EXPECT_EQ(FirstProduct(code8.data(), p.codes, 0, 1, 9), first);
    EXPECT_EQ(WholeProduct(code8.data(), p.codes, 0, 1, 9), whole);
    const uint32_t word = p.codes.first(0, 1, 1, 9);
    for (int j = 0; j < 4; ++j) {
      EXPECT_EQ(word >> (8 * j) & 0xff,
                code[8 + j] >> 2 | code[12 + j] >> 2 << 2 | code[16 + j] >> 2 << 4 |
                    code[20 + j] >> 2 << 6);
    }
  }
}

TEST(ExactTest, ForcedPositions) {
  EXPECT_TRUE(TokenIsForced(0, 1000));
  EXPECT_TRUE(TokenIsForced(15, 1000));
  EXPECT_FALSE(TokenIsForced(16, 1000));
  EXPECT_FALSE(TokenIsForced(935, 1000));
  EXPECT_TRUE(TokenIsForced(936, 1000));
  EXPECT_TRUE(TokenIsForced(999, 1000));
  EXPECT_TRUE(BlockIsForced(0, 9));
  EXPECT_FALSE(BlockIsForced(6, 9));
  EXPECT_TRUE(BlockIsForced(7, 9));
  EXPECT_EQ(BlocksOf(0), 0);
  EXPECT_EQ(BlocksOf(64), 1);
  EXPECT_EQ(BlocksOf(65), 2);
}

TEST(ExactTest, MassNeeded) {
  EXPECT_EQ(FixedScore(1.0f), uint64_t{1} << 32);
  EXPECT_EQ(FixedScore(std::nanf("")), 0u);
  EXPECT_EQ(FixedScore(-1.0f), 0u);
  EXPECT_EQ(MassNeeded(0.5f, 1000), 500u);
  EXPECT_EQ(MassNeeded(0.0f, 1000), 0u);
}

TEST(ExactTest, VectorEncodingIsBitIdentical) {
  for (int d : {128, 5, 64, 576, 80}) {
    testing::SparseProblem p({.d = d}, static_cast<uint32_t>(d));
    const int r = kCodeDirections;
    std::vector<float> key(d), product(r);
    std::vector<uint8_t> expected(r), code(r);
    for (int i = 0; i < 200; ++i) {
      for (float& x : key) x = ToFloat(ToBf16(p.Normal() * (i % 3 == 0 ? 1.0f : 0.01f)));
      if (i % 17 == 0) key[i % d] = std::nanf("");
      if (i % 19 == 0) key[i % d] = 3e38f;
      EncodeKey(key.data(), p.table, i % 2, expected.data());
      EncodeKeyCpu(key.data(), p.table, i % 2, product.data(), code.data());
      ASSERT_EQ(code, expected) << i;
    }
  }
}

TEST(ExactTest, TurnedQueryKeepsTheProducts) {
  testing::SparseProblem p({.d = 128}, 3);
  std::vector<float> q(128), product(32);
  std::vector<int8_t> code8(32);
  for (float& x : q) x = p.Normal();
  const float scale = TurnQuery(q.data(), p.table, 1, 0.1f, product.data(), code8.data());
  int largest = 0;
  for (int8_t x : code8) largest = std::max(largest, std::abs(x));
  EXPECT_EQ(largest, 127);
  // code8 * (2 code - 15) * scale is product * (code - 7.5) * attention scale.
  for (int c = 0; c < 32; ++c) {
    EXPECT_NEAR(2 * scale * static_cast<float>(code8[c]), product[c] * 0.1f, scale * 1.001f);
  }
}

TEST(ExactTest, LagDropsWhatIsNotThereAnyMore) {
  DecodeRow row = testing::MakeRow(0, 64 * 5, 3, 64);
  row.lag = DecodeRow::kLagged;
  int32_t kept[10] = {3, 1, 3, 8}, blocks[10] = {0, 3, 4}, count = 3;
  ExchangeLag(row, kept, blocks, &count);
  EXPECT_EQ(std::vector<int32_t>(blocks, blocks + count), (std::vector<int32_t>{0, 1, 3, 4}));
  EXPECT_EQ(std::vector<int32_t>(kept, kept + 4), (std::vector<int32_t>{3, 0, 3, 4}));
}

}  // namespace
}  // namespace asynctls
