// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/ref/exact.h"
#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

constexpr uint32_t kUntouched = 0xaaaaaaaa;

// T tokens of two lanes, some of them crossing a border of blocks.
struct Problem {
  Problem(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim)
      : qkv(Normal<bf16, 2>({tokens, (heads + 2 * kv_heads) * dim}, 1, 3)),
        q_norm(Normal<bf16, 1>({dim}, 2)),
        k_norm(Normal<bf16, 1>({dim}, 3)),
        cos_sin(Normal<float, 2>({tokens, dim}, 4)),
        lanes({tokens}),
        positions({tokens}),
        slots({2, 3}),
        encode(Normal<float, 3>({kv_heads, dim, kCodeDirections}, 5, 0.5)),
        offset(Normal<float, 2>({kv_heads, kCodeDirections}, 6)),
        q_out({tokens, heads, dim}),
        rows({6, kv_heads, kBlockPositions, 2 * dim}),
        first({6, kv_heads, kCodeWords, kBlockPositions}),
        second({6, kv_heads, kCodeWords, kBlockPositions}) {
    for (int64_t t = 0; t < tokens; ++t) {
      lanes(t) = t % 3 == 0 ? 1 : 0;
      positions(t) = static_cast<int32_t>(50 + t);
    }
    for (int i = 0; i < 6; ++i) slots(i / 3, i % 3) = 5 - i;
    first.Fill(kUntouched);
    second.Fill(kUntouched);
    code = {.encode = encode, .offset = offset, .turn = encode};
  }
  AppendKvArgs Args() const {
    return {.qkv = qkv,
            .q_norm = q_norm,
            .k_norm = k_norm,
            .eps = 1e-6f,
            .cos_sin = cos_sin,
            .lanes = lanes,
            .positions = positions,
            .q_out = q_out,
            .kv = {rows.view(), slots.view()},
            .code = code,
            .codes = {first.view(), second.view()},
            .turned = {},
            .turn_begin = 0,
            .scale = 0.17f};
  }
  Tensor<bf16, 2> qkv;
  Tensor<bf16, 1> q_norm, k_norm;
  Tensor<float, 2> cos_sin;
  Tensor<int32_t, 1> lanes, positions;
  Tensor<int32_t, 2> slots;
  Tensor<float, 3> encode;
  Tensor<float, 2> offset;
  Tensor<bf16, 3> q_out;
  Tensor<bf16, 4> rows;
  Tensor<uint32_t, 4> first, second;
  KeyCodeTable code;
};

template <typename B>
using AppendKvTest = OpTest<B>;
TYPED_TEST_SUITE(AppendKvTest, Backends);

TYPED_TEST(AppendKvTest, NormsTurnsAndCopies) {
  Problem p(1, 1, 1, 2);
  for (int i = 0; i < 6; ++i) p.qkv(0, i) = ToBf16(static_cast<float>(3 + i % 2));  // 3 4 3 4 3 4
  p.q_norm.Fill(ToBf16(1));
  p.k_norm.Fill(ToBf16(2));
  p.cos_sin(0, 0) = 0;  // a quarter turn: (a, b) becomes (-b, a)
  p.cos_sin(0, 1) = 1;
  this->backend_.ops.AppendKv(p.Args());
  const float low = ToFloat(ToBf16(0.8485281f)), high = ToFloat(ToBf16(1.1313708f));
  EXPECT_EQ(ToFloat(p.q_out(0, 0, 0)), -high);
  EXPECT_EQ(ToFloat(p.q_out(0, 0, 1)), low);
  const int64_t slot = p.slots(1, 0);
  EXPECT_EQ(ToFloat(p.rows(slot, 0, 50, 0)), -2 * high);
  EXPECT_EQ(ToFloat(p.rows(slot, 0, 50, 1)), 2 * low);
  EXPECT_EQ(ToFloat(p.rows(slot, 0, 50, 2)), 3.0f);
  EXPECT_EQ(ToFloat(p.rows(slot, 0, 50, 3)), 4.0f);
}

TYPED_TEST(AppendKvTest, AgreesWithTheReference) {
  struct Shape {
    int64_t tokens, heads, kv_heads, dim;
  };
  for (const auto& [tokens, heads, kv_heads, dim] :
       {Shape{0, 2, 1, 8}, Shape{1, 8, 2, 128}, Shape{20, 5, 1, 80}, Shape{40, 4, 4, 6}}) {
    Problem got(tokens, heads, kv_heads, dim), want(tokens, heads, kv_heads, dim);
    this->backend_.ops.AppendKv(got.Args());
    this->reference_.AppendKv(want.Args());
    EXPECT_TRUE(Close(got.q_out.view(), want.q_out.view(), kAppendKv)) << tokens << " " << dim;
    EXPECT_TRUE(Close(got.rows.view(), want.rows.view(), kAppendKv)) << tokens << " " << dim;
  }
}

// Codes are exact given the stored key, and nothing but the tokens' own bytes is written.
TYPED_TEST(AppendKvTest, WritesTheCodesOfTheKeysItStored) {
  Problem p(20, 2, 2, 64);
  this->backend_.ops.AppendKv(p.Args());
  Problem want(20, 2, 2, 64);
  for (int64_t t = 0; t < 20; ++t) {
    const int64_t slot = p.slots(p.lanes(t), p.positions(t) / kBlockPositions);
    const int64_t at = p.positions(t) % kBlockPositions;
    for (int g = 0; g < 2; ++g) {
      float key[64];
      uint8_t code[kCodeDirections];
      for (int d = 0; d < 64; ++d) key[d] = ToFloat(p.rows(slot, g, at, d));
      EncodeKey(key, p.code, g, code);
      StoreCode(code, want.Args().codes, slot, g, at);
    }
  }
  EXPECT_TRUE(Same(p.first.view(), want.first.view()));
  EXPECT_TRUE(Same(p.second.view(), want.second.view()));
}

// Turned queries are exact given the stored query; rows outside the asked ones are left alone.
TYPED_TEST(AppendKvTest, TurnsTheQueriesItStored) {
  for (const auto& [heads, kv_heads, dim] :
       {std::array{8, 2, 128}, std::array{5, 1, 64}, std::array{9, 1, 20}, std::array{4, 4, 6}}) {
    Problem p(20, heads, kv_heads, dim);
    const int64_t begin = 3, count = 15;
    // Rows with heads that are not finite, zero, tiny and huge.
    for (int i = 0; i < dim; ++i) {
      p.qkv(4, i) = ToBf16(std::nanf(""));
      p.qkv(5, i) = ToBf16(0);
    }
    p.qkv(6, 0) = ToBf16(std::numeric_limits<float>::infinity());
    for (int i = 0; i < dim; ++i) p.cos_sin(7, i) *= 1e-37f;
    for (int i = 0; i < dim; ++i) p.cos_sin(8, i) *= 1e-30f;
    for (int i = 0; i < dim; ++i) p.cos_sin(9, i) *= 1e30f;
    for (int i = 0; i < dim; ++i) p.cos_sin(10, i) *= 3e37f;
    p.lanes(11) = -1;
    Tensor<int8_t, 3> code8({count, heads, kCodeDirections});
    Tensor<float, 2> scale({count, heads});
    code8.Fill(99);
    scale.Fill(-3);
    AppendKvArgs a = p.Args();
    a.turned = {code8.view(), scale.view()};
    a.turn_begin = begin;
    this->backend_.ops.AppendKv(a);
    for (int64_t s = 0; s < count; ++s) {
      for (int h = 0; h < heads; ++h) {
        std::vector<float> q(static_cast<size_t>(dim)), product(kCodeDirections);
        std::vector<int8_t> want(kCodeDirections, 99);
        float want_scale = -3;
        if (p.lanes(begin + s) >= 0) {
          for (int d = 0; d < dim; ++d) q[d] = ToFloat(p.q_out(begin + s, h, d));
          want_scale = TurnQuery(
              q.data(), p.code, h / (heads / kv_heads), a.scale, product.data(), want.data());
        }
        const float got = scale(s, h);
        EXPECT_TRUE(got == want_scale || (std::isnan(got) && std::isnan(want_scale)))
            << "row " << s << " head " << h << ": " << got << " instead of " << want_scale;
        EXPECT_TRUE(std::equal(want.begin(), want.end(), code8.view()[s][h].data))
            << "row " << s << " head " << h;
      }
    }
    EXPECT_TRUE(std::isnan(scale(1, 0)));
    EXPECT_EQ(scale(2, 0), 0.0f);
  }
}

TYPED_TEST(AppendKvTest, NoTableNoCodes) {
  Problem p(20, 2, 2, 64);
  p.code = {};
  this->backend_.ops.AppendKv(p.Args());
  for (int64_t i = 0; i < p.first.size(); ++i) ASSERT_EQ(p.first.data()[i], kUntouched);
  EXPECT_NE(ToFloat(p.rows(p.slots(1, 0), 0, 50, 0)), 0.0f);
}

TYPED_TEST(AppendKvTest, PaddingWritesNothing) {
  Problem p(20, 2, 2, 64), before(20, 2, 2, 64);
  for (int64_t t = 0; t < 20; ++t) {
    p.lanes(t) = -1;
    p.positions(t) = 0;
  }
  this->backend_.ops.AppendKv(p.Args());
  EXPECT_TRUE(Same(p.rows.view(), before.rows.view()));
  EXPECT_TRUE(Same(p.first.view(), before.first.view()));
  EXPECT_TRUE(Same(p.second.view(), before.second.view()));
}

TYPED_TEST(AppendKvTest, TokensDoNotDependOnTheBatch) {
  Problem all(40, 8, 2, 128), one(40, 8, 2, 128);
  this->backend_.ops.AppendKv(all.Args());
  for (int64_t t = 0; t < 40; ++t) {
    AppendKvArgs a = one.Args();
    a.qkv = a.qkv.Slice(t, 1);
    a.cos_sin = a.cos_sin.Slice(t, 1);
    a.lanes = a.lanes.Slice(t, 1);
    a.positions = a.positions.Slice(t, 1);
    a.q_out = a.q_out.Slice(t, 1);
    this->backend_.ops.AppendKv(a);
  }
  EXPECT_TRUE(Same(one.q_out.view(), all.q_out.view()));
  EXPECT_TRUE(Same(one.rows.view(), all.rows.view()));
  EXPECT_TRUE(Same(one.first.view(), all.first.view()));
}

}  // namespace
}  // namespace asynctls::testing
