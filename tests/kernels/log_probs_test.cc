// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

using ::testing::ElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Outcome {
  explicit Outcome(int64_t rows)
      : log_prob({rows}), ids({rows, kMaxTopIds}), log_probs({rows, kMaxTopIds}) {
    log_prob.Fill(9);
    ids.Fill(-9);
    log_probs.Fill(9);
  }
  template <typename OpsType>
  void Run(OpsType& ops,
           const Tensor<float, 2>& logits,
           int32_t vocab,
           const Tensor<LogProbRow, 1>& rows) {
    ops.LogProbs({logits, vocab, rows, log_prob, ids, log_probs});
  }
  std::vector<int32_t> Ids(int64_t i, int count) { return {&ids(i, 0), &ids(i, 0) + count}; }

  Tensor<float, 1> log_prob;
  Tensor<int32_t, 2> ids;
  Tensor<float, 2> log_probs;
};

template <typename B>
using LogProbsTest = OpTest<B>;
TYPED_TEST_SUITE(LogProbsTest, Backends);

TYPED_TEST(LogProbsTest, ByHand) {
  Tensor<float, 2> logits({2, 6});
  const float values[2][6] = {
      {std::log(0.1f), std::log(0.4f), kNan, std::log(0.3f), std::log(0.2f), 50},
      {1, 3, 3, 2, 3, 50}};
  std::copy_n(&values[0][0], 12, logits.data());
  Outcome out(4);
  out.Run(this->backend_.ops,
          logits,
          5,
          List<LogProbRow>({{0, 4, 0}, {1, -1, 3}, {0, 1, 5}, {1, 5, 1}}));
  EXPECT_NEAR(out.log_prob(0), std::log(0.2), 1e-6);
  EXPECT_EQ(out.ids(0, 0), -9);  // none asked for
  EXPECT_EQ(out.log_prob(1), 9);
  EXPECT_THAT(out.Ids(1, 4), ElementsAre(1, 2, 4, -9));  // ties to the lower id
  EXPECT_EQ(out.log_probs(1, 0), out.log_probs(1, 2));
  EXPECT_NEAR(out.log_prob(2), std::log(0.4), 1e-6);
  EXPECT_THAT(out.Ids(2, 6), ElementsAre(1, 3, 4, 0, -1, -9));  // NaN is not listed
  EXPECT_NEAR(out.log_probs(2, 3), std::log(0.1), 1e-6);
  EXPECT_EQ(out.log_probs(2, 0), out.log_prob(2));
  // Of a row of the embedding behind the vocabulary: the same sum.
  EXPECT_NEAR(out.log_prob(3), 50 - 3 - std::log(3 + std::exp(-1.0) + std::exp(-2.0)), 1e-5);
}

TYPED_TEST(LogProbsTest, AgreesWithTheReference) {
  for (const int32_t vocab : {1, 2, 19, 20, 21, 64, 1003, 5000}) {
    constexpr int64_t kRows = 9;
    Tensor<float, 2> logits({kRows, vocab + 2});
    std::mt19937 random(static_cast<uint32_t>(vocab));
    for (int64_t i = 0; i < logits.size(); ++i) {  // many ties, some NaN
      logits.data()[i] = random() % 40 == 0 ? kNan : static_cast<float>(random() % 300) / 30;
    }
    for (int v = 0; v < vocab; ++v) logits(0, v) = static_cast<float>(v) / 100;  // ever better
    for (int v = 0; v < vocab; ++v) logits(1, v) = 1;
    logits(0, 0) = logits(1, 0) = logits(2, 0) = 1;
    Tensor<LogProbRow, 1> rows({2 * kRows});
    for (int i = 0; i < 2 * kRows; ++i) {
      rows(i) = {.row = i * 5 % static_cast<int>(kRows),
                 .token = i % 3 == 0 ? -1 : static_cast<int32_t>(random() % uint32_t(vocab)),
                 .top = i * 7 % (kMaxTopIds + 1)};
    }
    Outcome got(2 * kRows), want(2 * kRows);
    got.Run(this->backend_.ops, logits, vocab, rows);
    want.Run(this->reference_, logits, vocab, rows);
    ASSERT_TRUE(Same(got.ids.view(), want.ids.view())) << "vocabulary of " << vocab;
    for (int64_t i = 0; i < 2 * kRows; ++i) {
      if (std::isnan(want.log_prob(i))) {
        EXPECT_TRUE(std::isnan(got.log_prob(i)));
      } else {
        EXPECT_NEAR(got.log_prob(i), want.log_prob(i), 1e-4);
      }
      for (int k = 0; k < kMaxTopIds; ++k) {
        EXPECT_NEAR(got.log_probs(i, k), want.log_probs(i, k), 1e-4) << i << ", " << k;
      }
    }
  }
}

}  // namespace
}  // namespace asynctls::testing
