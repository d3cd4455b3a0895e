// SPDX-License-Identifier: Apache-2.0
// The dense Highway ops as machines with less than this one's instruction set would run them.
#include <hwy/highway.h>

#include "kernels/cpu/attend_range.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/ref/ref_ops.h"
#include "tests/testing/compare.h"
#include "tests/testing/paged_kv.h"

namespace asynctls::testing {
namespace {

// Runs `test` with each instruction set that this machine has as the best one.
template <typename F>
void ForEachTarget(const F& test) {
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  ASSERT_NE(targets, 0);
  for (int64_t rest = targets; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    test();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

TEST(TargetsTest, RmsNormAndSwiGlu) {
  const auto x = Normal<bf16, 2>({3, 302}, 1);
  const auto weight = Normal<bf16, 1>({302}, 2);
  Tensor<bf16, 2> want({3, 302}), want_gated({3, 151}), out({3, 302}), gated({3, 151});
  RefOps reference;
  reference.RmsNorm({.x = x, .residual = {}, .weight = weight, .out = want, .eps = 1e-6f});
  reference.SwiGlu({.gate_up = x, .out = want_gated});
  ForEachTarget([&] {
    CpuOps ops(1);
    ops.RmsNorm({.x = x, .residual = {}, .weight = weight, .out = out, .eps = 1e-6f});
    ops.SwiGlu({.gate_up = x, .out = gated});
    EXPECT_TRUE(Close(out.view(), want.view(), kRounding));
    EXPECT_TRUE(Close(gated.view(), want_gated.view(), kRounding));
  });
}

TEST(TargetsTest, Products) {
  const auto x = Normal<bf16, 2>({7, 130}, 1);
  const auto w = Normal<bf16, 2>({19, 130}, 2);
  const Matrix matrix{w.view()};
  Tensor<float, 2> want({7, 19}), out({7, 19});
  RefOps().Logits({.x = x, .w = &matrix, .out = want});
  ForEachTarget([&] {
    ThreadTeam team(1);
    MultiplyFp32({x.data(), w.data(), 7, 19, 130, false, nullptr, out.data()}, team);
    EXPECT_TRUE(Close(out.view(), want.view(), kLogits));
  });
}

TEST(TargetsTest, Attention) {
  for (int64_t group : {1, 4, 5}) {
    const PagedKv kv(1, 5, 2, 68, 1);
    const KvView view = kv.view();
    const auto q = Normal<bf16, 3>({1, 2 * group, 68}, 2);
    const auto rows = List<DecodeRow>({{.lane = 0,
                                        .length = 290,
                                        .max_blocks = 0,
                                        .max_tokens = 0,
                                        .top_p = 1,
                                        .lag = DecodeRow::kExact}});
    Tensor<bf16, 2> want({1, 2 * group * 68}), out({1, 2 * group * 68});
    RefOps().DecodeAttend({q, view, rows, 0.2f, want});
    ForEachTarget([&] {
      CpuOps ops(1);
      ops.DecodeAttend({q, view, rows, 0.2f, out});
      EXPECT_TRUE(Close(out.view(), want.view(), kAttendFp32));
    });
  }
}

TEST(TargetsTest, Sample) {
  const auto logits = Normal<float, 2>({1, 1003}, 1, 3);
  const auto rows = List<SampleRow>({{.temperature = 0.7f,
                                      .top_k = 50,
                                      .top_p = 0.9f,
                                      .min_p = 0.01f,
                                      .seed = 5,
                                      .index = 0,
                                      .position = 3,
                                      .lane = 0}});
  Tensor<int32_t, 1> token({1}), want_token({1}), last({1});
  Tensor<float, 1> log_prob({1}), want_log_prob({1});
  RefOps().Sample({logits, 1000, rows, want_token, want_log_prob, last});
  ForEachTarget([&] {
    CpuOps ops(1);
    ops.Sample({logits, 1000, rows, token, log_prob, last});
    EXPECT_TRUE(Same(token.view(), want_token.view()));
    EXPECT_TRUE(Close(log_prob.view(), want_log_prob.view(), kLogProb));
  });
}

TEST(TargetsTest, LogProbs) {
  const auto logits = Normal<float, 2>({2, 1003}, 1, 3);
  const auto rows = List<LogProbRow>({{1, 5, 20}, {0, 999, 7}});
  Tensor<float, 1> log_prob({2}), want_log_prob({2});
  Tensor<int32_t, 2> ids({2, kMaxTopIds}), want_ids({2, kMaxTopIds});
  Tensor<float, 2> top({2, kMaxTopIds}), want_top({2, kMaxTopIds});
  want_ids.Fill(0);
  want_top.Fill(0);
  RefOps().LogProbs({logits, 1000, rows, want_log_prob, want_ids, want_top});
  ForEachTarget([&] {
    CpuOps ops(1);
    ids.Fill(0);
    top.Fill(0);
    ops.LogProbs({logits, 1000, rows, log_prob, ids, top});
    EXPECT_TRUE(Same(ids.view(), want_ids.view()));
    EXPECT_TRUE(Close(top.view(), want_top.view(), kLogProb));
    EXPECT_TRUE(Close(log_prob.view(), want_log_prob.view(), kLogProb));
  });
}

}  // namespace
}  // namespace asynctls::testing
