// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

template <typename B>
using RopeTableTest = OpTest<B>;
TYPED_TEST_SUITE(RopeTableTest, Backends);

TYPED_TEST(RopeTableTest, CosinesThenSinesScaled) {
  const auto positions = List<int32_t>({0, 2, 131071});
  const auto frequencies = List<float>({1.0f, 0.25f});
  Tensor<float, 2> table({3, 4});
  this->backend_.ops.RopeTable(
      {.positions = positions, .inv_frequency = frequencies, .scale = 1.5f, .cos_sin = table});
  for (int t = 0; t < 3; ++t) {
    for (int i = 0; i < 2; ++i) {
      const double angle = static_cast<double>(positions(t)) * frequencies(i);
      EXPECT_NEAR(table(t, i), 1.5 * std::cos(angle), 1e-6) << t << " " << i;
      EXPECT_NEAR(table(t, 2 + i), 1.5 * std::sin(angle), 1e-6) << t << " " << i;
    }
  }
}

TYPED_TEST(RopeTableTest, EqualsTheReference) {
  const auto frequencies = Normal<float, 1>({64}, 1);
  for (int64_t rows : {0, 1, 100}) {
    Tensor<int32_t, 1> positions({rows});
    for (int64_t t = 0; t < rows; ++t) positions(t) = static_cast<int32_t>(t * 997);
    Tensor<float, 2> table({rows, 128}), want({rows, 128});
    RopeTableArgs args{positions, frequencies, 1.0f, table};
    this->backend_.ops.RopeTable(args);
    args.cos_sin = want;
    this->reference_.RopeTable(args);
    EXPECT_TRUE(Close(table.view(), want.view(), kLibm)) << rows;
  }
}

}  // namespace
}  // namespace asynctls::testing
