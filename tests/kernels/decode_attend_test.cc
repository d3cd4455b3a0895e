// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "tests/testing/backends.h"
#include "tests/testing/compare.h"
#include "tests/testing/paged_kv.h"

namespace asynctls::testing {
namespace {

DecodeRow Row(int32_t lane, int32_t length) {
  return {.lane = lane,
          .length = length,
          .max_blocks = 0,
          .max_tokens = 0,
          .top_p = 1,
          .lag = DecodeRow::kExact};
}

template <typename B>
using DecodeAttendTest = OpTest<B>;
TYPED_TEST_SUITE(DecodeAttendTest, Backends);

TYPED_TEST(DecodeAttendTest, OnePositionGivesItsValueNoneGivesZeros) {
  const PagedKv kv(1, 1, 1, 32, 1);
  const auto q = Normal<bf16, 3>({2, 1, 32}, 2);
  const auto rows = List<DecodeRow>({Row(0, 1), Row(0, 0)});
  Tensor<bf16, 2> out({2, 32});
  out.Fill(ToBf16(5));
  this->backend_.ops.DecodeAttend({q, kv.view(), rows, 1.0f, out});
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(out(0, i).bits, kv.rows(0, 0, 0, 32 + i).bits);
    EXPECT_EQ(ToFloat(out(1, i)), 0.0f);
  }
}

TYPED_TEST(DecodeAttendTest, AgreesWithTheReferenceAtEveryGroupSize) {
  for (int64_t group = 1; group <= 8; ++group) {
    const PagedKv kv(2, 20, 2, 64, 1);
    const auto rows = List<DecodeRow>({Row(0, 1),
                                       Row(1, 63),
                                       Row(0, 64),
                                       Row(1, 65),
                                       Row(0, 511),
                                       Row(1, 512),
                                       Row(0, 513),
                                       Row(1, 1280)});
    const auto q = Normal<bf16, 3>({8, 2 * group, 64}, 2);
    Tensor<bf16, 2> out({8, 2 * group * 64}), want({8, 2 * group * 64});
    DecodeAttendArgs args{q, kv.view(), rows, 0.125f, out};
    this->backend_.ops.DecodeAttend(args);
    args.out = want;
    this->reference_.DecodeAttend(args);
    EXPECT_TRUE(Close(out.view(), want.view(), kAttend)) << group;
  }
}

TYPED_TEST(DecodeAttendTest, OddHeadSizesAndSharpSoftmaxes) {
  for (int64_t dim : {2, 24, 80, 128}) {
    for (float scale : {0.01f, 1.0f, 30.0f}) {
      const PagedKv kv(1, 3, 1, dim, 1);
      const auto rows = List<DecodeRow>({Row(0, 150)});
      const auto q = Normal<bf16, 3>({1, 3, dim}, 2);
      Tensor<bf16, 2> out({1, 3 * dim}), want({1, 3 * dim});
      DecodeAttendArgs args{q, kv.view(), rows, scale, out};
      this->backend_.ops.DecodeAttend(args);
      args.out = want;
      this->reference_.DecodeAttend(args);
      EXPECT_TRUE(Close(out.view(), want.view(), kAttend)) << dim << " " << scale;
    }
  }
}

TYPED_TEST(DecodeAttendTest, RowsDoNotDependOnTheBatch) {
  const PagedKv kv(3, 20, 2, 128, 1);
  const auto rows = List<DecodeRow>({Row(2, 1100), Row(0, 7), Row(1, 0), Row(1, 600)});
  const auto q = Normal<bf16, 3>({4, 8, 128}, 2);
  Tensor<bf16, 2> all({4, 1024}), one({4, 1024});
  this->backend_.ops.DecodeAttend({q, kv.view(), rows, 0.1f, all});
  for (int s = 0; s < 4; ++s) {
    this->backend_.ops.DecodeAttend(
        {q.view().Slice(s, 1), kv.view(), rows.view().Slice(s, 1), 0.1f, one.view().Slice(s, 1)});
  }
  EXPECT_TRUE(Same(one.view(), all.view()));
}

TEST(DecodeAttendCpuTest, ThreadsDoNotMatter) {
  const PagedKv kv(3, 20, 2, 128, 1);
  const auto rows = List<DecodeRow>({Row(2, 1100), Row(0, 7), Row(1, 0), Row(1, 600)});
  const auto q = Normal<bf16, 3>({4, 8, 128}, 2);
  Tensor<bf16, 2> all({4, 1024}), one({4, 1024});
  CpuOps one_thread(1), four_threads(4);
  one_thread.DecodeAttend({q, kv.view(), rows, 0.1f, all});
  four_threads.DecodeAttend({q, kv.view(), rows, 0.1f, one});
  EXPECT_TRUE(Same(one.view(), all.view()));
}

TYPED_TEST(DecodeAttendTest, NoRows) {
  const PagedKv kv(1, 1, 1, 32, 1);
  const Tensor<bf16, 3> q({0, 1, 32});
  const Tensor<DecodeRow, 1> rows({0});
  const Tensor<bf16, 2> out({0, 32});
  this->backend_.ops.DecodeAttend({q, kv.view(), rows, 1.0f, out});
  EXPECT_EQ(out.size(), 0);
}

}  // namespace
}  // namespace asynctls::testing
