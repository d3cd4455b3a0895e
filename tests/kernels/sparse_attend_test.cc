// SPDX-License-Identifier: Apache-2.0
// Attention over selected tokens: every backend against the reference, and sparse with everything selected
// against a dense softmax written out here in double.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/testing/backends.h"
#include "tests/testing/sparse_problem.h"

namespace asynctls {
namespace {

using testing::MakeRow;
using testing::SparseOutputs;
using testing::SparseProblem;

// |a - b| in units of what bf16 can tell apart near b, or of 2^-9 for small b.
void ExpectClose(const View<bf16, 2>& a, const View<bf16, 2>& b) {
  for (int64_t i = 0; i < a.size(); ++i) {
    const float x = ToFloat(a.data[i]), y = ToFloat(b.data[i]);
    ASSERT_NEAR(x, y, std::max(std::fabs(y), 0.125f) / 64) << "value " << i;
  }
}

template <class B>
void RunAll(B& ops, SparseOutputs& out) {
  out.SelectBlocks(ops);
  out.SelectTokens(ops);
  out.Attend(ops);
}

// Every backend's output for the rows of `p` against the reference's; and `also(ops, output)`.
template <typename Also>
void ExpectTheReference(SparseProblem& p, Also also) {
  RefOps ref_ops;
  SparseOutputs ref(p);
  RunAll(ref_ops, ref);
  testing::OnEveryBackend([&](auto& ops) {
    SparseOutputs got(p);
    RunAll(ops, got);
    ExpectClose(got.out, ref.out);
    also(ops, got);
  });
}

TEST(SparseAttendTest, EqualsTheReference) {
  for (int heads : {1, 2, 4, 5, 8}) {
    SparseProblem p({.heads = heads, .d = 128, .length = 1500}, 20 + heads);
    p.EncodeAll();
    p.SetRows({MakeRow(0, 1500, 20, 700),
               MakeRow(0, 0, 20, 700),
               MakeRow(0, 1, 20, 700),
               MakeRow(0, 63, 20, 700),
               MakeRow(0, 257, 20, 256),
               MakeRow(0, 1400, 20, 257),
               MakeRow(0, 1400, 20, 0)});
    ExpectTheReference(p, [](auto&, const SparseOutputs& got) {
      for (int64_t i = 0; i < got.out.dim(1); ++i) {
        EXPECT_EQ(ToFloat(got.out(1, i)), 0.0f);  // padded
        EXPECT_EQ(ToFloat(got.out(6, i)), 0.0f);  // nothing selected
      }
    });
  }
}

TEST(SparseAttendTest, HeadDimsAndSharpSoftmaxes) {
  for (int d : {16, 48, 64, 80, 256}) {
    SparseProblem p({.d = d, .length = 600}, 40 + d);
    p.EncodeAll();
    p.SetRows({MakeRow(0, 600, 20, 1000), MakeRow(0, 450, 20, 100)}, d == 64 ? 100.0f : 2.0f);
    ExpectTheReference(p, [](auto&, const SparseOutputs&) {});
  }
}

TEST(SparseAttendTest, FullBudgetIsDenseAttention) {
  SparseProblem p({.d = 64, .length = 777}, 2);
  p.EncodeAll();
  p.SetRows({MakeRow(0, 777, 1 << 20, 1 << 20)});
  CpuOps ops(2);
  SparseOutputs out(p);
  RunAll(ops, out);
  for (int64_t h = 0; h < 8; ++h) {
    std::vector<double> sum(64);
    double z = 0;
    for (int i = 0; i < 777; ++i) {
      const bf16* row = &p.kv.rows(p.slot_table(0, i / 64), h / 4, i % 64, 0);
      double dot = 0;
      for (int d = 0; d < 64; ++d) dot += ToFloat(p.q(0, h, d)) * ToFloat(row[d]);
      const double w = std::exp(dot * p.scale);
      z += w;
      for (int d = 0; d < 64; ++d) sum[d] += w * ToFloat(row[64 + d]);
    }
    for (int d = 0; d < 64; ++d) {
      const double expected = sum[d] / z;
      EXPECT_NEAR(ToFloat(out.out(0, h * 64 + d)), expected, std::fabs(expected) / 128 + 1e-4);
    }
  }
}

TEST(SparseAttendTest, SameBitsInAnyBatch) {
  SparseProblem p({.d = 128, .lanes = 2, .length = 3000}, 4);
  p.EncodeAll();
  p.SetRows({MakeRow(0, 3000, 40, 1024), MakeRow(1, 2999, 40, 1000)});
  testing::OnEveryBackend([&](auto& ops) {
    SparseOutputs both(p);
    RunAll(ops, both);
    SparseProblem alone = p;
    alone.rows = p.rows.Slice(1, 1);
    alone.q = p.q.Slice(1, 1);
    SparseOutputs one(alone);
    RunAll(ops, one);
    for (int64_t i = 0; i < one.out.size(); ++i) {
      ASSERT_EQ(one.out.data[i].bits, both.out[1].data[i].bits);
    }
  });
}

// So many rows that a GPU is full: it goes through them in another way than through few.
TEST(SparseAttendTest, ManyRowsAreWhatTheyAreAlone) {
  for (int d : {64, 128}) {
    SparseProblem p({.heads = 5, .d = d, .length = 1500}, 5);
    p.EncodeAll();
    std::vector<DecodeRow> rows;
    for (int i = 0; i < 20; ++i) rows.push_back(MakeRow(0, 1500 - 77 * i, 20, 1000 - 50 * i));
    p.SetRows(rows);
    ExpectTheReference(p, [&](auto& ops, const SparseOutputs& all) {
      for (const int64_t row : {0, 7, 19}) {
        SparseProblem alone = p;
        alone.rows = p.rows.Slice(row, 1);
        alone.q = p.q.Slice(row, 1);
        SparseOutputs one(alone);
        RunAll(ops, one);
        for (int64_t i = 0; i < one.out.size(); ++i) {
          ASSERT_EQ(one.out.data[i].bits, all.out[row].data[i].bits) << "row " << row;
        }
      }
    });
  }
}

TEST(SparseAttendTest, SameBitsWithAnyThreads) {
  SparseProblem p({.groups = 1, .d = 128, .lanes = 2, .length = 3000}, 3);
  p.EncodeAll();
  p.SetRows({MakeRow(0, 3000, 40, 1024), MakeRow(1, 2999, 40, 1000)});
  CpuOps one(1), two(2), four(4);
  SparseOutputs a(p), b(p), c(p);
  RunAll(one, a);
  RunAll(two, b);
  RunAll(four, c);
  for (int64_t i = 0; i < a.out.size(); ++i) {
    ASSERT_EQ(a.out.data[i].bits, b.out.data[i].bits);
    ASSERT_EQ(a.out.data[i].bits, c.out.data[i].bits);
  }
}

}  // namespace
}  // namespace asynctls
