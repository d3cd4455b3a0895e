// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

template <typename B>
using StartHistoryTest = OpTest<B>;
TYPED_TEST_SUITE(StartHistoryTest, Backends);

TYPED_TEST(StartHistoryTest, ClearsTheLaneAndMarksThePrompt) {
  constexpr int kVocab = 67;
  Tensor<uint16_t, 2> generated({3, kVocab});
  Tensor<uint32_t, 2> prompt({3, 3});
  generated.Fill(9);
  prompt.Fill(0xffffffffu);
  const auto ids = List<uint32_t>({0, 31, 32, 66, 32, 67, 4000000000u});
  this->backend_.ops.StartHistory({1, ids, {generated, prompt}});
  for (int id = 0; id < kVocab; ++id) {
    EXPECT_EQ(generated(0, id), 9);
    EXPECT_EQ(generated(1, id), 0);
    EXPECT_EQ(generated(2, id), 9);
  }
  EXPECT_EQ(prompt(1, 0), 1u | 1u << 31);
  EXPECT_EQ(prompt(1, 1), 1u);
  EXPECT_EQ(prompt(1, 2), 1u << 2);
  for (int word = 0; word < 3; ++word) {
    EXPECT_EQ(prompt(0, word), 0xffffffffu);
    EXPECT_EQ(prompt(2, word), 0xffffffffu);
  }
  this->backend_.ops.StartHistory({1, {}, {generated, prompt}});
  for (int word = 0; word < 3; ++word) EXPECT_EQ(prompt(1, word), 0u);
}

}  // namespace
}  // namespace asynctls::testing
