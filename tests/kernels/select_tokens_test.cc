// SPDX-License-Identifier: Apache-2.0
// Level 2: the rules of the reference, and that every backend chooses the same tokens, always.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/testing/backends.h"
#include "tests/testing/sparse_problem.h"

namespace asynctls {
namespace {

using testing::MakeRow;
using testing::SparseOutputs;
using testing::SparseProblem;

// Reference and backends from the queries on.
void ExpectSame(const SparseProblem& p) {
  RefOps reference;
  SparseOutputs ref(p);
  ref.SelectBlocks(reference);
  ref.SelectTokens(reference);
  testing::OnEveryBackend([&](auto& ops) {
    SparseOutputs got(p);
    got.SelectBlocks(ops);
    got.SelectTokens(ops);
    for (int64_t s = 0; s < p.rows.dim(0); ++s) {
      SCOPED_TRACE(::testing::Message() << "row " << s << " length " << p.rows[s].length);
      for (int64_t g = 0; g < p.shape.groups; ++g) {
        EXPECT_EQ(ref.TokensOfRow(s, g), got.TokensOfRow(s, g)) << "head " << g;
        EXPECT_EQ(ref.selection.touched(s, g), got.selection.touched(s, g));
      }
    }
  });
}

TEST(SelectTokensTest, EveryLengthAroundBlockBorders) {
  SparseProblem p({.length = 330}, 1);
  p.EncodeAll();
  std::vector<DecodeRow> rows;
  for (int n = 0; n <= 330; ++n) rows.push_back(MakeRow(0, n, 3 + n % 3, 90 + n % 7));
  p.SetRows(rows);
  ExpectSame(p);
}

TEST(SelectTokensTest, GroupsOfEverySize) {
  for (int heads = 1; heads <= 9; ++heads) {
    SparseProblem p({.groups = 3, .heads = heads, .length = 64 * 30 + 5}, 10 + heads);
    p.EncodeAll();
    p.SetRows({MakeRow(0, 64 * 30 + 5, 16, 300), MakeRow(0, 64 * 30, 17, 301)}, 4.0f);
    ExpectSame(p);
  }
}

TEST(SelectTokensTest, SharpAndFlatSoftmaxes) {
  SparseProblem p({.length = 64 * 80}, 3);
  p.EncodeAll();
  for (float q_scale : {0.0f, 1e-3f, 0.1f, 10.0f, 100.0f, 1e10f}) {
    p.SetRows({MakeRow(0, 64 * 80, 64, 1024), MakeRow(0, 64 * 79 + 9, 64, 256)}, q_scale);
    ExpectSame(p);
    // A head without an opinion beside three that have one: its denominator counts.
    for (int64_t d = 0; d < p.shape.d; ++d) p.q(0, 0, d) = p.q(1, 5, d) = ToBf16(0.0f);
    ExpectSame(p);
  }
}

TEST(SelectTokensTest, TiesGoToTheLowerPosition) {
  SparseProblem p({.length = 64 * 20}, 4);
  p.SetRows({MakeRow(0, 64 * 20, 8, 120)});  // codes all zero: every score equal
  ExpectSame(p);
  SparseOutputs out(p);
  RefOps ops;
  out.SelectBlocks(ops);
  out.SelectTokens(ops);
  std::vector<int32_t> expected(56);  // 120 less the window of 64
  std::iota(expected.begin(), expected.end(), 0);
  for (int32_t i = 64 * 19; i < 64 * 20; ++i) expected.push_back(i);
  EXPECT_EQ(out.TokensOfRow(0, 0), expected);
  EXPECT_EQ(out.selection.touched(0, 0), 2);
  for (int levels : {1, 2, 3}) {
    p.RandomCodes(levels);
    p.SetRows({MakeRow(0, 64 * 20, 8, 120), MakeRow(0, 1000, 9, 333)}, 0.02f);
    ExpectSame(p);
  }
}

TEST(SelectTokensTest, BudgetsFromNothingToMoreThanThereIs) {
  SparseProblem p({.length = 500}, 5);
  p.EncodeAll();
  std::vector<DecodeRow> rows;
  for (int k : {0, 1, 15, 16, 17, 79, 80, 81, 447, 448, 499, 500, 501, 1 << 30}) {
    rows.push_back(MakeRow(0, 500, 1000, k));
    rows.push_back(MakeRow(0, 500, 2, k));
  }
  p.SetRows(rows);
  ExpectSame(p);
}

TEST(SelectTokensTest, ManyBlocks) {
  SparseProblem p({.length = 64 * 300 + 17}, 12);
  p.EncodeAll();
  std::vector<DecodeRow> rows;
  for (int blocks : {63, 64, 65, 127, 128, 129, 200, 301}) {
    rows.push_back(MakeRow(0, 64 * 300 + 17, blocks, 1000));
  }
  p.SetRows(rows);
  ExpectSame(p);
}

TEST(SelectTokensTest, FullBudgetIsEveryPosition) {
  SparseProblem p({.length = 1000}, 6);
  p.EncodeAll();
  p.SetRows({MakeRow(0, 1000, 1 << 20, 1 << 20)});
  CpuOps ops(2);
  SparseOutputs out(p);
  out.SelectBlocks(ops);
  out.SelectTokens(ops);
  std::vector<int32_t> all(1000);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(out.TokensOfRow(0, 0), all);
  EXPECT_EQ(out.TokensOfRow(0, 1), all);
  EXPECT_EQ(out.selection.touched(0, 1), 16);
}

TEST(SelectTokensTest, CutByMass) {
  SparseProblem p({.length = 64 * 40}, 7);
  p.EncodeAll();
  std::vector<DecodeRow> rows;
  for (float top_p : {0.0f, 0.01f, 0.3f, 0.5f, 0.9f, 0.999f, 1.0f}) {
    rows.push_back(MakeRow(0, 64 * 40, 32, 1024, top_p));
    rows.push_back(MakeRow(0, 64 * 39 + 7, 32, 40, top_p));
  }
  p.SetRows(rows, 8.0f);
  ExpectSame(p);
  CpuOps ops(1);
  SparseOutputs out(p);
  out.SelectBlocks(ops);
  out.SelectTokens(ops);
  EXPECT_EQ(out.selection.token_count(0, 0), kSinkPositions + kWindowPositions);
  EXPECT_EQ(out.selection.token_count(1, 0), 40);
  // A smaller share never keeps more, and the last row is not cut.
  for (int i = 2; i < 14; i += 2) {
    EXPECT_LE(out.selection.token_count(i - 2, 0), out.selection.token_count(i, 0));
  }
  EXPECT_EQ(out.selection.token_count(12, 0), 1024);
}

TEST(SelectTokensTest, HeadsThatAreNotFiniteAreLeftOut) {
  SparseProblem p({.length = 1234}, 8);
  p.EncodeAll();
  p.SetRows(std::vector<DecodeRow>(3, MakeRow(0, 1234, 10, 200)));
  p.q(0, 1, 3) = ToBf16(std::nanf(""));
  p.q(1, 0, 0) = ToBf16(std::numeric_limits<float>::infinity());
  for (int h = 0; h < 8; ++h) p.q(2, h, 5) = ToBf16(std::nanf(""));
  ExpectSame(p);
}

TEST(SelectTokensTest, KeptTokensHaveTheBestScores) {
  // One head, one block filter that keeps all: the kept tokens are those of the largest logits.
  SparseProblem p({.groups = 1, .heads = 1, .length = 640}, 9);
  p.EncodeAll();
  p.SetRows({MakeRow(0, 640, 10, 150)}, 0.2f);  // flat enough that no weight underflows
  CpuOps ops(2);
  SparseOutputs out(p);
  out.SelectBlocks(ops);
  out.SelectTokens(ops);
  const auto logit = [&](int position) {
    const int64_t slot = p.slot_table(0, position / 64), at = position % 64;
    return WholeProduct(out.turned.code8[0][0].data, p.codes, slot, 0, at);
  };
  const std::vector<int32_t> kept = out.TokensOfRow(0, 0);
  int worst_kept = 1 << 30, best_dropped = -(1 << 30);
  for (int i = kSinkPositions; i < 640 - kWindowPositions; ++i) {
    const bool in = std::binary_search(kept.begin(), kept.end(), i);
    if (in) worst_kept = std::min(worst_kept, logit(i));
    if (!in) best_dropped = std::max(best_dropped, logit(i));
  }
  EXPECT_GE(worst_kept, best_dropped);
  EXPECT_EQ(kept.size(), 150u);
}

}  // namespace
}  // namespace asynctls
