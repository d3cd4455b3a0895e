// SPDX-License-Identifier: Apache-2.0
// The two ways a range of a decode row goes, each by itself, and their merge.
#include "kernels/cpu/attend_range.h"

#include "kernels/ref/ref_ops.h"
#include "tests/testing/compare.h"
#include "tests/testing/paged_kv.h"

namespace asynctls::testing {
namespace {

using RangeFunction = void (*)(const AttendHeads&, int64_t, int64_t, float*, int64_t, Scratch&);

// Attends to [0, length) of one KV head in two ranges cut at `cut`, against the reference.
void ExpectAgrees(RangeFunction attend,
                  int64_t group,
                  int64_t dim,
                  int64_t cut,
                  int64_t length,
                  const Tolerance& tolerance) {
  const PagedKv kv(1, 10, 1, dim, 1);
  const KvView view = kv.view();
  const auto q = Normal<bf16, 3>({1, group, dim}, 2);
  Tensor<bf16, 2> out({1, group * dim}), want({1, group * dim});
  const AttendHeads one{
      .q = q.data(), .kv = &view, .lane = 0, .g = 0, .heads = 1, .group = group, .scale = 0.2f};
  Scratch scratch;
  const int64_t size = AttendPartSize(group, dim);
  float* parts = scratch.Get<float>(2, 2 * size);
  attend(one, 0, cut, parts, size, scratch);
  if (cut < length) attend(one, cut, length, parts + size, size, scratch);
  MergeParts(parts, cut < length ? 2 : 1, group, dim, out.data());
  const auto rows = List<DecodeRow>({{.lane = 0,
                                      .length = static_cast<int32_t>(length),
                                      .max_blocks = 0,
                                      .max_tokens = 0,
                                      .top_p = 1,
                                      .lag = DecodeRow::kExact}});
  RefOps().DecodeAttend({q, view, rows, 0.2f, want});
  EXPECT_TRUE(Close(out.view(), want.view(), tolerance))
      << "group " << group << ", dim " << dim << ", " << cut << " of " << length;
}

TEST(AttendRangeTest, Fp32AgreesWithTheReference) {
  for (int64_t group : {1, 2, 3, 4, 5, 7, 8, 20}) {
    ExpectAgrees(AttendRangeFp32, group, 128, 256, 600, kAttendFp32);
    ExpectAgrees(AttendRangeFp32, group, 36, 64, 65, kAttendFp32);
    ExpectAgrees(AttendRangeFp32, group, 64, 1, 1, kAttendFp32);
  }
}

TEST(AttendRangeTest, TilesAgreeWithTheReference) {
  if (!amx::CanAttend(1, 128)) GTEST_SKIP() << "no AMX on this machine";
  EXPECT_FALSE(amx::CanAttend(17, 128));
  EXPECT_FALSE(amx::CanAttend(4, 80));
  for (int64_t group : {1, 2, 3, 4, 5, 7, 8, 16}) {
    ExpectAgrees(amx::AttendRange, group, 128, 256, 600, kAttend);
    ExpectAgrees(amx::AttendRange, group, 96, 64, 97, kAttend);
    ExpectAgrees(amx::AttendRange, group, 32, 1, 1, kAttend);
  }
}

// Rows behind the end may hold anything.
TEST(AttendRangeTest, WhatLiesBehindTheEndIsNotRead) {
  for (RangeFunction attend : {RangeFunction{AttendRangeFp32}, RangeFunction{AttendRange}}) {
    const PagedKv kv(1, 1, 1, 64, 1);
    for (int64_t p = 37; p < kBlockPositions; ++p) {
      for (int64_t i = 0; i < 128; ++i) kv.rows(0, 0, p, i) = bf16{0x7fc0};  // NaN
    }
    const KvView view = kv.view();
    const auto q = Normal<bf16, 2>({4, 64}, 2);
    Tensor<bf16, 1> out({256});
    Scratch scratch;
    float* part = scratch.Get<float>(2, AttendPartSize(4, 64));
    attend({.q = q.data(), .kv = &view, .lane = 0, .g = 0, .heads = 1, .group = 4, .scale = 0.2f},
           0,
           37,
           part,
           0,
           scratch);
    MergeParts(part, 1, 4, 64, out.data());
    for (const bf16 x : out.view()) EXPECT_FALSE(std::isnan(ToFloat(x)));
  }
}

}  // namespace
}  // namespace asynctls::testing
