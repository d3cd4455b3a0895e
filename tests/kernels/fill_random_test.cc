// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "kernels/device/splitmix.h"
#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

// The first outputs of SplitMix64 from state 0 (Vigna's splitmix64.c).
static_assert(SplitMix64(0) == 0xe220a8397b1dcdafu);
static_assert(SplitMix64(0x9e3779b97f4a7c15u) == 0x6e789e6aa1b965f4u);

template <typename B>
using FillRandomTest = OpTest<B>;
TYPED_TEST_SUITE(FillRandomTest, Backends);

TYPED_TEST(FillRandomTest, DrawsFourValuesFromEachWord) {
  Tensor<bf16, 2> out({1, 6});
  this->backend_.ops.FillRandom(
      {.out = out, .key = 0, .first = 2, .stride = 6, .centre = 1, .spread = 0x1p-15f});
  const uint64_t words[] = {SplitMix64(0), SplitMix64(1)};
  for (int i = 0; i < 6; ++i) {
    const auto draw = static_cast<int16_t>(words[(2 + i) / 4] >> (16 * ((2 + i) % 4)));
    EXPECT_EQ(out(0, i).bits, ToBf16(1 + 0x1p-15f * draw).bits) << i;
  }
}

TYPED_TEST(FillRandomTest, APartHasTheValuesOfTheWhole) {
  Tensor<bf16, 2> whole({9, 37}), part({4, 11});
  const FillRandomArgs args{.out = whole,
                            .key = 77,
                            .first = (int64_t{1} << 33) + 1,
                            .stride = 37,
                            .centre = 0,
                            .spread = 0.02f / 32768};
  this->backend_.ops.FillRandom(args);
  FillRandomArgs some = args;
  some.out = part;
  some.first += 3 * 37 + 5;
  this->backend_.ops.FillRandom(some);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 11; ++j) EXPECT_EQ(part(i, j).bits, whole(3 + i, 5 + j).bits);
  }
}

TYPED_TEST(FillRandomTest, AgreesWithTheReference) {
  Tensor<bf16, 2> got({130, 259}), want({130, 259});
  FillRandomArgs args{
      .out = got, .key = 5, .first = 3, .stride = 300, .centre = 1, .spread = 1e-6f};
  this->backend_.ops.FillRandom(args);
  args.out = want;
  this->reference_.FillRandom(args);
  for (int64_t i = 0; i < got.size(); ++i) ASSERT_EQ(got.data()[i].bits, want.data()[i].bits) << i;
}

}  // namespace
}  // namespace asynctls::testing
