// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/prefill_attend.h"

#include <vector>

#include "kernels/cpu/amx.h"
#include "tests/testing/backends.h"
#include "tests/testing/compare.h"
#include "tests/testing/paged_kv.h"

namespace asynctls::testing {
namespace {

template <typename B>
using PrefillAttendTest = OpTest<B>;
TYPED_TEST_SUITE(PrefillAttendTest, Backends);

TYPED_TEST(PrefillAttendTest, TheFirstPositionSeesItselfOnly) {
  const PagedKv kv(1, 1, 1, 32, 1);
  const auto q = Normal<bf16, 3>({1, 2, 32}, 2);
  const auto segments = List<PrefillSegment>({{0, 1, 0, 0}});
  Tensor<bf16, 2> out({1, 64});
  this->backend_.ops.PrefillAttend({q, kv.view(), segments, 1.0f, out});
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out(0, i).bits, kv.rows(0, 0, 0, 32 + i % 32).bits);
}

TYPED_TEST(PrefillAttendTest, AgreesWithTheReferenceAtEveryGroupSize) {
  for (int64_t group = 1; group <= 8; ++group) {
    const PagedKv kv(2, 6, 2, 64, 1);
    // A prompt's start, the middle of another, one position at a border, nothing.
    const auto segments =
        List<PrefillSegment>({{0, 90, 0, 0}, {90, 37, 1, 260}, {127, 1, 1, 63}, {128, 0, 0, 5}});
    const auto q = Normal<bf16, 3>({128, 2 * group, 64}, 2);
    Tensor<bf16, 2> out({128, 2 * group * 64}), want({128, 2 * group * 64});
    PrefillAttendArgs args{q, kv.view(), segments, 0.2f, out};
    this->backend_.ops.PrefillAttend(args);
    args.out = want;
    this->reference_.PrefillAttend(args);
    EXPECT_TRUE(Close(out.view(), want.view(), kAttend)) << group;
  }
}

TYPED_TEST(PrefillAttendTest, OddHeadSizesAndSharpSoftmaxes) {
  for (int64_t dim : {8, 32, 80, 96, 128}) {
    for (float scale : {0.01f, 0.5f, 10.0f}) {
      const PagedKv kv(1, 5, 1, dim, 1);
      const auto segments = List<PrefillSegment>({{0, 66, 0, 230}});
      const auto q = Normal<bf16, 3>({66, 3, dim}, 2);
      Tensor<bf16, 2> out({66, 3 * dim}), want({66, 3 * dim});
      PrefillAttendArgs args{q, kv.view(), segments, scale, out};
      this->backend_.ops.PrefillAttend(args);
      args.out = want;
      this->reference_.PrefillAttend(args);
      EXPECT_TRUE(Close(out.view(), want.view(), kAttend)) << dim << " " << scale;
    }
  }
}

// NaN in what nobody may see yet must not show.
TYPED_TEST(PrefillAttendTest, WhatLiesBehindTheChunkIsNotRead) {
  const PagedKv kv(1, 2, 1, 64, 1), clean(1, 2, 1, 64, 1);
  for (int64_t p = 70; p < 128; ++p) {
    for (int64_t i = 0; i < 128; ++i) {
      kv.rows(kv.slots(0, p / kBlockPositions), 0, p % kBlockPositions, i) = bf16{0x7fc0};
    }
  }
  const auto q = Normal<bf16, 3>({70, 4, 64}, 2);
  const auto segments = List<PrefillSegment>({{0, 70, 0, 0}});
  Tensor<bf16, 2> out({70, 256}), want({70, 256});
  this->backend_.ops.PrefillAttend({q, kv.view(), segments, 0.2f, out});
  this->backend_.ops.PrefillAttend({q, clean.view(), segments, 0.2f, want});
  EXPECT_TRUE(Same(out.view(), want.view()));
}

TYPED_TEST(PrefillAttendTest, ChunksDoNotMatter) {
  const int64_t tokens = 700;
  const PagedKv kv(1, (tokens + 63) / 64, 2, 128, 1);
  const auto q = Normal<bf16, 3>({tokens, 4, 128}, 2);
  Tensor<bf16, 2> whole({tokens, 512}), parts({tokens, 512});
  const auto all = List<PrefillSegment>({{0, static_cast<int32_t>(tokens), 0, 0}});
  this->backend_.ops.PrefillAttend({q, kv.view(), all, 0.1f, whole});
  for (int chunk : {512, 37}) {
    for (int first = 0; first < tokens; first += chunk) {
      const int count = std::min(chunk, static_cast<int>(tokens) - first);
      const auto segment = List<PrefillSegment>({{first, count, 0, first}});
      this->backend_.ops.PrefillAttend({q, kv.view(), segment, 0.1f, parts});
    }
    EXPECT_TRUE(Same(parts.view(), whole.view())) << "in chunks of " << chunk;
  }
}

using AttendFunction = void (*)(const PrefillAttendArgs&, ThreadTeam&);

void ExpectChunksDoNotMatter(AttendFunction attend, int64_t tokens, std::vector<int> chunks) {
  const PagedKv kv(1, (tokens + 63) / 64, 2, 128, 1);
  const auto q = Normal<bf16, 3>({tokens, 8, 128}, 2);
  Tensor<bf16, 2> whole({tokens, 1024}), parts({tokens, 1024});
  ThreadTeam one(1), three(3);
  const auto all = List<PrefillSegment>({{0, static_cast<int32_t>(tokens), 0, 0}});
  attend({q, kv.view(), all, 0.1f, whole}, three);
  for (int chunk : chunks) {
    for (int first = 0; first < tokens; first += chunk) {
      const int count = std::min(chunk, static_cast<int>(tokens) - first);
      const auto segment = List<PrefillSegment>({{first, count, 0, first}});
      attend({q, kv.view(), segment, 0.1f, parts}, one);
    }
    EXPECT_TRUE(Same(parts.view(), whole.view())) << "in chunks of " << chunk;
  }
}

TEST(PrefillChunksTest, DoNotMatterOnTiles) {
  if (!amx::Usable()) GTEST_SKIP() << "no AMX on this machine";
  ExpectChunksDoNotMatter(amx::PrefillAttend, 1100, {1000, 512, 37});
}

TEST(PrefillChunksTest, DoNotMatterByRow) {
  ExpectChunksDoNotMatter(PrefillAttendByRow, 300, {200, 37});
}

TEST(PrefillByRowTest, AgreesWithTheReference) {
  RefOps reference;
  ThreadTeam team(2);
  const PagedKv kv(1, 10, 2, 48, 1);
  const auto segments = List<PrefillSegment>({{0, 50, 0, 570}});
  const auto q = Normal<bf16, 3>({50, 10, 48}, 2);
  Tensor<bf16, 2> out({50, 480}), want({50, 480});
  PrefillAttendByRow({q, kv.view(), segments, 0.2f, out}, team);
  reference.PrefillAttend({q, kv.view(), segments, 0.2f, want});
  EXPECT_TRUE(Close(out.view(), want.view(), kAttend));
}

}  // namespace
}  // namespace asynctls::testing
