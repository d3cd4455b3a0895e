// SPDX-License-Identifier: Apache-2.0
// The paper's selector: the bound holds, the code is near, and the CPU agrees with the reference
// but for near ties (fp32 sums in another order).
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/ref/ref_ops.h"
#include "tests/testing/sparse_problem.h"

namespace asynctls {
namespace {

using testing::MakeRow;
using testing::SparseOutputs;
using testing::SparseProblem;

struct Index {
  Index(const SparseProblem& p, int64_t r) {
    const int64_t n = p.kv.rows.dim(0), g = p.shape.groups, d = p.shape.d;
    range.resize(n * g * 2 * d);
    code.resize(n * g * kBlockPositions * r / 2);
    step.resize(n * g * kBlockPositions * 2);
    for (int64_t i = 0; i < g * r; ++i) channels.push_back(static_cast<int32_t>((i * 7) % d));
    view.range = {range.data(), {n, g, 2, d}};
    view.code = {code.data(), {n, g, kBlockPositions, r / 2}};
    view.step = {step.data(), {n, g, kBlockPositions, 2}};
    view.channels = {channels.data(), {g, r}};
  }
  std::vector<bf16> range, step;
  std::vector<uint8_t> code;
  std::vector<int32_t> channels;
  BoundIndex view;
};

// Appends all positions of all lanes, in two calls.
template <class B>
void AppendAll(B& ops, const SparseProblem& p, Index& index) {
  std::vector<int32_t> lanes, positions;
  for (int64_t lane = 0; lane < p.shape.lanes; ++lane) {
    for (int32_t i = 0; i < p.shape.length; ++i) {
      lanes.push_back(static_cast<int32_t>(lane));
      positions.push_back(i);
    }
  }
  const auto n = static_cast<int64_t>(lanes.size()), half = n / 3;
  const View<const int32_t, 1> l(lanes.data(), {n}), pos(positions.data(), {n});
  ops.BoundAppend({p.kv, l.Slice(0, half), pos.Slice(0, half), index.view});
  ops.BoundAppend({p.kv, l.Slice(half, n - half), pos.Slice(half, n - half), index.view});
}

TEST(BoundTest, IndexesAreEqualAndHold) {
  SparseProblem p({.d = 64, .lanes = 2, .length = 200}, 1);
  Index ref(p, 32), cpu(p, 32);
  RefOps ref_ops;
  CpuOps cpu_ops(2);
  AppendAll(ref_ops, p, ref);
  AppendAll(cpu_ops, p, cpu);
  EXPECT_EQ(ref.code, cpu.code);
  for (size_t i = 0; i < ref.range.size(); ++i) EXPECT_EQ(ref.range[i].bits, cpu.range[i].bits);
  for (size_t i = 0; i < ref.step.size(); ++i) EXPECT_EQ(ref.step[i].bits, cpu.step[i].bits);
  for (int64_t lane = 0; lane < 2; ++lane) {
    for (int i = 0; i < 200; ++i) {
      const int64_t slot = p.slot_table(lane, i / 64);
      const bf16* key = &p.kv.rows(slot, 1, i % 64, 0);
      for (int d = 0; d < 64; ++d) {
        EXPECT_LE(ToFloat(cpu.view.range(slot, 1, 0, d)), ToFloat(key[d]));
        EXPECT_GE(ToFloat(cpu.view.range(slot, 1, 1, d)), ToFloat(key[d]));
      }
      const float step = ToFloat(cpu.view.step(slot, 1, i % 64, 0));
      const float zero = ToFloat(cpu.view.step(slot, 1, i % 64, 1));
      for (int c = 0; c < 32; ++c) {
        const int byte = cpu.view.code(slot, 1, i % 64, c / 2),
                  code = c % 2 ? byte >> 4 : byte & 15;
        EXPECT_NEAR(zero + step * static_cast<float>(code),
                    ToFloat(key[cpu.view.channels(1, c)]),
                    0.6f * step);
      }
    }
  }
}

TEST(BoundTest, KeysAllEqualHaveNoStep) {
  SparseProblem p({.d = 64, .length = 64}, 2);
  for (bf16& x : p.kv_data) x = ToBf16(1.5f);
  Index index(p, 32);
  CpuOps ops(1);
  AppendAll(ops, p, index);
  EXPECT_EQ(ToFloat(index.view.step(0, 0, 5, 0)), 0.0f);
  EXPECT_EQ(ToFloat(index.view.step(0, 0, 5, 1)), 1.5f);
  EXPECT_EQ(index.view.code(0, 0, 5, 3), 0);
}

TEST(BoundTest, SelectionsAgreeButForNearTies) {
  SparseProblem p({.d = 64, .length = 64 * 60 + 10}, 3);
  Index index(p, 32);
  RefOps ref_ops;
  CpuOps cpu_ops(2);
  AppendAll(ref_ops, p, index);
  std::vector<DecodeRow> rows;
  for (int n : {0, 1, 64, 65, 300, 64 * 60, 64 * 60 + 10}) rows.push_back(MakeRow(0, n, 16, 256));
  rows.push_back(MakeRow(0, 2000, 1 << 20, 1 << 20));
  rows.push_back(MakeRow(0, 2000, 20, 512, 0.1f));
  p.SetRows(rows, 0.3f);
  p.q(5, 2, 3) = ToBf16(std::nanf(""));
  SparseOutputs ref(p), cpu(p);
  const auto run = [&](auto& ops, SparseOutputs& out) {
    ops.BoundSelectBlocks({p.q, p.slot_table, p.rows, index.view, out.lag, out.selection});
    ops.BoundSelectTokens({p.q, p.slot_table, p.rows, index.view, p.scale, out.selection});
  };
  run(ref_ops, ref);
  run(cpu_ops, cpu);
  EXPECT_EQ(cpu.selection.nan_heads(5, 0), 1);
  for (size_t s = 0; s < rows.size(); ++s) {
    for (int64_t g = 0; g < 2; ++g) {
      const auto a = ref.TokensOfRow(s, g), b = cpu.TokensOfRow(s, g);
      std::vector<int32_t> both;
      std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
      EXPECT_GE(both.size() + 2, std::max(a.size(), b.size())) << "row " << s;
      EXPECT_TRUE(std::is_sorted(b.begin(), b.end()));
      EXPECT_EQ(cpu.selection.touched(s, g),
                BlocksTouched(b.data(), static_cast<int32_t>(b.size())));
    }
  }
  EXPECT_EQ(cpu.selection.token_count(0, 0), 0);
  EXPECT_EQ(cpu.selection.token_count(7, 1), 2000);
  EXPECT_LT(cpu.selection.token_count(8, 1), 512);
}

TEST(BoundTest, FindsThePlantedKey) {
  SparseProblem p({.d = 64, .length = 64 * 50}, 4);
  p.SetRows({MakeRow(0, 64 * 50, 8, 128)});
  const int needle = 64 * 23 + 11;
  for (int h = 0; h < 4; ++h) {  // group 0 looks for it, group 1 does not
    for (int d = 0; d < 64; ++d) {
      p.kv.rows(p.slot_table(0, needle / 64), 0, needle % 64, d) =
          ToBf16(3.0f * ToFloat(p.q(0, 0, d)));
    }
  }
  Index index(p, 32);
  CpuOps ops(2);
  AppendAll(ops, p, index);
  SparseOutputs out(p);
  ops.BoundSelectBlocks({p.q, p.slot_table, p.rows, index.view, out.lag, out.selection});
  ops.BoundSelectTokens({p.q, p.slot_table, p.rows, index.view, p.scale, out.selection});
  const auto tokens = out.TokensOfRow(0, 0);
  EXPECT_TRUE(std::binary_search(tokens.begin(), tokens.end(), needle));
}

}  // namespace
}  // namespace asynctls
