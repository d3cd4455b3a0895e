// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

template <typename B>
using RmsNormTest = OpTest<B>;
TYPED_TEST_SUITE(RmsNormTest, Backends);

TYPED_TEST(RmsNormTest, NormalisesToUnitMeanSquareAndScales) {
  Tensor<bf16, 2> x({1, 2}), out({1, 2});
  x(0, 0) = ToBf16(3);
  x(0, 1) = ToBf16(4);
  const auto weight = List<bf16>({ToBf16(1), ToBf16(-2)});
  this->backend_.ops.RmsNorm({.x = x, .residual = {}, .weight = weight, .out = out, .eps = 0});
  // 3 and 4 over sqrt(12.5), rounded to bf16, then times the weight.
  EXPECT_EQ(out(0, 0).bits, ToBf16(0.8485281f).bits);
  EXPECT_EQ(ToFloat(out(0, 1)), -2 * ToFloat(ToBf16(1.1313708f)));
}

TYPED_TEST(RmsNormTest, ZerosStayZerosBecauseOfEps) {
  Tensor<bf16, 2> x({1, 40}), out({1, 40});
  const auto weight = Normal<bf16, 1>({40}, 1);
  this->backend_.ops.RmsNorm({.x = x, .residual = {}, .weight = weight, .out = out, .eps = 1e-6f});
  for (int i = 0; i < 40; ++i) EXPECT_EQ(ToFloat(out(0, i)), 0.0f);
}

TYPED_TEST(RmsNormTest, AgreesWithTheReferenceAndUpdatesTheResidual) {
  for (int64_t rows : {0, 1, 3, 200}) {
    for (int64_t width : {1, 31, 256, 300, 4096}) {
      if (rows * width > 300000) continue;
      const auto x = Normal<bf16, 2>({rows, width}, 1);
      const auto weight = Normal<bf16, 1>({width}, 2);
      auto residual = Normal<bf16, 2>({rows, width}, 3, 4);
      auto expected_residual = Normal<bf16, 2>({rows, width}, 3, 4);
      Tensor<bf16, 2> out({rows, width}), want({rows, width});
      this->backend_.ops.RmsNorm(
          {.x = x, .residual = residual, .weight = weight, .out = out, .eps = 1e-6f});
      this->reference_.RmsNorm(
          {.x = x, .residual = expected_residual, .weight = weight, .out = want, .eps = 1e-6f});
      EXPECT_TRUE(Same(residual.view(), expected_residual.view())) << rows << " x " << width;
      EXPECT_TRUE(Close(out.view(), want.view(), kRounding)) << rows << " x " << width;
    }
  }
}

TYPED_TEST(RmsNormTest, MayWriteOverItsInput) {
  auto x = Normal<bf16, 2>({3, 100}, 1);
  const auto weight = Normal<bf16, 1>({100}, 2);
  Tensor<bf16, 2> want({3, 100});
  this->backend_.ops.RmsNorm({.x = x, .residual = {}, .weight = weight, .out = want, .eps = 1e-6f});
  this->backend_.ops.RmsNorm({.x = x, .residual = {}, .weight = weight, .out = x, .eps = 1e-6f});
  EXPECT_TRUE(Same(x.view(), want.view()));
}

}  // namespace
}  // namespace asynctls::testing
