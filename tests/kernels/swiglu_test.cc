// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

template <typename B>
using SwiGluTest = OpTest<B>;
TYPED_TEST_SUITE(SwiGluTest, Backends);

TYPED_TEST(SwiGluTest, KnownValuesAndTheEndsOfTheRange) {
  const float gates[] = {0, 1, -1, 200, -200, -3e38f};
  Tensor<bf16, 2> gate_up({1, 12}), out({1, 6});
  for (int i = 0; i < 6; ++i) {
    gate_up(0, i) = ToBf16(gates[i]);
    gate_up(0, 6 + i) = ToBf16(2);
  }
  this->backend_.ops.SwiGlu({.gate_up = gate_up, .out = out});
  EXPECT_EQ(ToFloat(out(0, 0)), 0.0f);
  EXPECT_EQ(out(0, 1).bits, ToBf16(2 * 0.731058579f).bits);
  EXPECT_EQ(out(0, 2).bits, ToBf16(2 * -0.268941421f).bits);
  EXPECT_EQ(ToFloat(out(0, 3)), 400.0f);
  EXPECT_NEAR(ToFloat(out(0, 4)), 0.0f, 1e-30f);
  EXPECT_EQ(ToFloat(out(0, 5)), 0.0f);
}

TYPED_TEST(SwiGluTest, AgreesWithTheReference) {
  for (int64_t rows : {0, 1, 5, 130}) {
    for (int64_t width : {1, 17, 704, 1000}) {
      const auto gate_up = Normal<bf16, 2>({rows, 2 * width}, 1, 4);
      Tensor<bf16, 2> out({rows, width}), want({rows, width});
      this->backend_.ops.SwiGlu({.gate_up = gate_up, .out = out});
      this->reference_.SwiGlu({.gate_up = gate_up, .out = want});
      EXPECT_TRUE(Close(out.view(), want.view(), kRounding)) << rows << " x " << width;
    }
  }
}

}  // namespace
}  // namespace asynctls::testing
