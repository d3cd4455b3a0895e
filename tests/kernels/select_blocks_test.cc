// SPDX-License-Identifier: Apache-2.0
// Level 1: the rules of the reference, and that every backend chooses the same blocks, always.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/testing/backends.h"
#include "tests/testing/sparse_problem.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;
using testing::MakeRow;
using testing::SparseOutputs;
using testing::SparseProblem;

// Expects equal blocks, counts and lag state.
void ExpectSame(const SparseProblem& p, const SparseOutputs& ref, const SparseOutputs& got) {
  for (int64_t s = 0; s < p.rows.dim(0); ++s) {
    SCOPED_TRACE(::testing::Message() << "row " << s << " length " << p.rows[s].length);
    for (int64_t g = 0; g < p.shape.groups; ++g) {
      EXPECT_EQ(ref.BlocksOfRow(s, g), got.BlocksOfRow(s, g)) << "head " << g;
      EXPECT_EQ(ref.selection.nan_heads(s, g), got.selection.nan_heads(s, g));
    }
  }
  for (int64_t i = 0; i < ref.lag.size(); ++i) EXPECT_EQ(ref.lag.data[i], got.lag.data[i]) << i;
}

void ExpectSame(const SparseProblem& p) {
  RefOps reference;
  SparseOutputs ref(p);
  ref.SelectBlocks(reference);
  testing::OnEveryBackend([&](auto& ops) {
    SparseOutputs got(p);
    got.SelectBlocks(ops);
    ExpectSame(p, ref, got);
  });
}

TEST(SelectBlocksTest, EveryLengthAroundBlockBorders) {
  SparseProblem p({.length = 330}, 1);
  p.EncodeAll();
  std::vector<DecodeRow> rows;
  for (int n = 0; n <= 330; ++n) rows.push_back(MakeRow(0, n, 3 + n % 3, 64));
  p.SetRows(rows);
  ExpectSame(p);
}

TEST(SelectBlocksTest, GroupsOfEverySize) {
  for (int heads = 1; heads <= 9; ++heads) {
    SparseProblem p({.groups = 3, .heads = heads, .length = 64 * 70 + 5}, 10 + heads);
    p.EncodeAll();
    p.SetRows({MakeRow(0, 64 * 70 + 5, 16, 64), MakeRow(0, 64 * 70, 17, 64)});
    ExpectSame(p);
  }
}

TEST(SelectBlocksTest, OtherHeadDims) {
  for (int d : {5, 19, 64, 576, 128}) {
    SparseProblem p({.d = d, .length = 1000}, 30 + d);
    p.EncodeAll();
    p.SetRows({MakeRow(0, 1000, 5, 64), MakeRow(0, 960, 5, 64)});
    ExpectSame(p);
  }
}

TEST(SelectBlocksTest, TiesGoToTheLowerIndex) {
  SparseProblem p({.length = 64 * 40}, 4);
  p.SetRows({MakeRow(0, 64 * 40, 7, 64)});  // codes all zero: every score equal
  ExpectSame(p);
  SparseOutputs out(p);
  RefOps ops;
  out.SelectBlocks(ops);
  EXPECT_THAT(out.BlocksOfRow(0, 0), ElementsAre(0, 1, 2, 3, 4, 38, 39));
  for (int levels : {1, 2, 3}) {
    p.RandomCodes(levels);
    ExpectSame(p);
  }
}

TEST(SelectBlocksTest, BudgetsFromNothingToMoreThanThereIs) {
  SparseProblem p({.length = 64 * 9 + 1}, 5);
  p.EncodeAll();
  std::vector<DecodeRow> rows;
  for (int k : {0, 1, 2, 3, 4, 9, 10, 11, 1 << 30}) rows.push_back(MakeRow(0, 64 * 9 + 1, k, 64));
  p.SetRows(rows);
  ExpectSame(p);
  SparseOutputs out(p);
  CpuOps ops(2);
  out.SelectBlocks(ops);
  EXPECT_THAT(out.BlocksOfRow(0, 0), ElementsAre());
  EXPECT_THAT(out.BlocksOfRow(2, 1), ElementsAre(0, 8));
  EXPECT_THAT(out.BlocksOfRow(3, 1), ElementsAre(0, 8, 9));
  EXPECT_EQ(out.BlocksOfRow(8, 0).size(), 10u);
}

TEST(SelectBlocksTest, QueriesThatAreNotFiniteZeroHugeOrTiny) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  SparseProblem p({.length = 1234}, 6);
  p.EncodeAll();
  std::vector<DecodeRow> rows(12, MakeRow(0, 1234, 6, 64));
  p.SetRows(rows);
  p.q(0, 1, 3) = ToBf16(nan);
  p.q(1, 2, 0) = ToBf16(inf);
  p.q(1, 3, 0) = ToBf16(-inf);
  for (int h = 0; h < 8; ++h) p.q(2, h, 5) = ToBf16(nan);
  for (int row = 3; row < 10; ++row) {
    const float factor[7] = {0.0f, 1e-38f, 1e-31f, 1e-29f, 1e20f, 1e30f, 3e38f};
    for (int64_t i = 0; i < 8 * p.shape.d; ++i) {
      bf16& x = p.q[row].data[i];
      x = ToBf16(ToFloat(x) * factor[row - 3]);
    }
  }
  ExpectSame(p);
  SparseOutputs out(p);
  RefOps ops;
  out.SelectBlocks(ops);
  EXPECT_EQ(out.selection.nan_heads(0, 0), 1);
  EXPECT_EQ(out.selection.nan_heads(1, 0), 2);
  EXPECT_EQ(out.selection.nan_heads(1, 1), 0);
  EXPECT_EQ(out.selection.nan_heads(2, 0), 4);
  EXPECT_THAT(out.BlocksOfRow(2, 0), ElementsAre(0, 1, 2, 3, 18, 19)) << "no head left: ties";
  EXPECT_EQ(out.turned.scale(3, 0), 0.0f);
}

TEST(SelectBlocksTest, KeysThatAreNotFiniteCodeAsAnythingElse) {
  SparseProblem p({.length = 640}, 7);
  for (int i = 0; i < 400; ++i) {
    const float odd[3] = {std::nanf(""), std::numeric_limits<float>::infinity(), -3e38f};
    p.kv_data[p.random() % p.kv_data.size()] = ToBf16(odd[i % 3]);
  }
  p.EncodeAll();
  p.SetRows({MakeRow(0, 640, 5, 64)});
  ExpectSame(p);
}

TEST(SelectBlocksTest, PaddedRowsSelectNothingAndTouchNothing) {
  SparseProblem p({.length = 640}, 8);
  p.EncodeAll();
  DecodeRow padded = MakeRow(-1, 0, 8, 64);
  padded.lag = DecodeRow::kLagged;
  p.SetRows({padded, MakeRow(0, 640, 8, 64), padded});
  ExpectSame(p);
  SparseOutputs out(p);
  CpuOps ops(2);
  out.SelectBlocks(ops);
  EXPECT_EQ(out.selection.block_count(0, 0), 0);
  EXPECT_EQ(out.selection.nan_heads(2, 1), 0);
  EXPECT_EQ(out.selection.block_count(1, 0), 8);
}

TEST(SelectBlocksTest, ARowDoesNotDependOnItsBatch) {
  SparseProblem p({.lanes = 3, .length = 64 * 300}, 9);
  p.EncodeAll();
  p.SetRows(
      {MakeRow(0, 64 * 300, 20, 64), MakeRow(1, 777, 5, 64), MakeRow(2, 64 * 150 + 3, 9, 64)});
  testing::OnEveryBackend([&](auto& ops) {
    SparseOutputs all(p);
    all.SelectBlocks(ops);
    for (int64_t s = 0; s < 3; ++s) {
      SparseProblem alone = p;
      alone.rows = p.rows.Slice(s, 1);
      alone.q = p.q.Slice(s, 1);
      SparseOutputs one(alone);
      one.SelectBlocks(ops);
      EXPECT_EQ(one.BlocksOfRow(0, 1), all.BlocksOfRow(s, 1));
    }
  });
}

TEST(SelectBlocksTest, LaggedRowsExchangeWithThePreviousStep) {
  SparseProblem p({.lanes = 2, .length = 64 * 30}, 11);
  p.EncodeAll();
  testing::OnEveryBackend([&](auto& ops) {
    RefOps reference;
    SparseOutputs ref_state(p), state(p);
    std::vector<std::vector<int32_t>> own;  // what kExact would have chosen, step by step
    for (int step = 0; step < 6; ++step) {
      const int64_t length = 64 * 24 + 60 + 3 * step;  // crosses a block border
      p.SetRows({MakeRow(1, length, 6, 64)});
      SparseOutputs ref(p), got(p);
      ref.SelectBlocks(reference);
      own.push_back(ref.BlocksOfRow(0, 0));
      p.row_data[0].lag = step == 0 ? DecodeRow::kLaggedFirst : DecodeRow::kLagged;
      std::copy_n(ref_state.lag.data, ref.lag.size(), ref.lag.data);
      std::copy_n(state.lag.data, got.lag.size(), got.lag.data);
      ref.SelectBlocks(reference);
      got.SelectBlocks(ops);
      ExpectSame(p, ref, got);
      std::copy_n(ref.lag.data, ref.lag.size(), ref_state.lag.data);
      std::copy_n(got.lag.data, got.lag.size(), state.lag.data);
      std::vector<int32_t> expected = own[step == 0 ? 0 : step - 1];
      const auto blocks = static_cast<int32_t>(BlocksOf(length));
      for (int32_t b : {0, blocks - 2, blocks - 1}) expected.push_back(b);
      std::sort(expected.begin(), expected.end());
      expected.erase(std::unique(expected.begin(), expected.end()), expected.end());
      EXPECT_EQ(ref.BlocksOfRow(0, 0), expected) << step;
    }
  });
}

}  // namespace
}  // namespace asynctls
