// SPDX-License-Identifier: Apache-2.0
// oneDNN's products as a machine without AMX would make them. An executable of its own: the limit
// on instruction sets must be set before oneDNN is first used.
#include <oneapi/dnnl/dnnl.hpp>

#include "kernels/cpu/gemm.h"
#include "kernels/ref/ref_ops.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

const dnnl::status kLimited = dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_bf16);

class OneDnnTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(kLimited, dnnl::status::success);
    if (!one_dnn_.usable()) GTEST_SKIP() << "no AVX-512 on this machine";
  }
  OneDnn one_dnn_;
  ThreadTeam team_{2};
};

TEST_F(OneDnnTest, AgreesWithTheReference) {
  RefOps reference;
  for (const auto& [rows, columns, depth] :
       {std::array<int64_t, 3>{1, 1, 1}, {3, 5, 7}, {17, 48, 64}, {65, 100, 72}, {130, 65, 704}}) {
    const auto x = Normal<bf16, 2>({rows, depth}, 1);
    const auto w = Normal<bf16, 2>({columns, depth}, 2);
    const Matrix matrix{w.view()};
    Tensor<bf16, 2> out({rows, columns}), want({rows, columns});
    Tensor<float, 2> logits({rows, columns}), want_logits({rows, columns});
    reference.Gemm({.x = x, .w = &matrix, .out = want});
    reference.Logits({.x = x, .w = &matrix, .out = want_logits});
    Product p{x.data(), w.data(), rows, columns, depth, false, out.data(), nullptr};
    one_dnn_.Multiply(p, team_);
    p.out_bf16 = nullptr;
    p.out_float = logits.data();
    one_dnn_.Multiply(p, team_);
    EXPECT_TRUE(Close(out.view(), want.view(), kGemm)) << rows << " " << columns << " " << depth;
    EXPECT_TRUE(Close(logits.view(), want_logits.view(), kLogits));
  }
}

TEST_F(OneDnnTest, RowsDoNotDependOnTheirNumber) {
  for (const auto& [columns, depth] : {std::array<int64_t, 2>{1536, 256},
                                       {256, 1024},
                                       {1408, 256},
                                       {256, 704},
                                       {64, 4096},
                                       {512, 4096},
                                       {64, 12288}}) {
    const auto x = Normal<bf16, 2>({256, depth}, 1);
    const auto w = Normal<bf16, 2>({columns, depth}, 2);
    Tensor<bf16, 2> all({256, columns}), some({256, columns});
    Product p{x.data(), w.data(), 256, columns, depth, false, all.data(), nullptr};
    one_dnn_.Multiply(p, team_);
    p.out_bf16 = some.data();
    for (int64_t count : {1, 2, 3, 15, 16, 17, 64, 200}) {
      p.rows = count;
      one_dnn_.Multiply(p, team_);
      EXPECT_TRUE(Same(some.view().Slice(0, count), all.view().Slice(0, count)))
          << count << " of " << columns << " x " << depth;
    }
  }
}

}  // namespace
}  // namespace asynctls::testing
