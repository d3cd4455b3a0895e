// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "kernels/ref/philox.h"
#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

using ::testing::ElementsAre;

// Known answers of Random123 1.09 (kat_vectors).
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

SampleRow Row(float temperature,
              int top_k = 0,
              float top_p = 1,
              float min_p = 0,
              uint64_t seed = 1,
              uint32_t position = 0) {
  return {.temperature = temperature,
          .top_k = top_k,
          .top_p = top_p,
          .min_p = min_p,
          .seed = seed,
          .index = 0,
          .position = position,
          .lane = 0};
}

struct Drawn {
  int32_t token;
  float log_prob;
  int32_t last_token;
};

template <typename OpsType>
Drawn Sample(OpsType& ops, const Tensor<float, 2>& logits, int32_t vocab, const SampleRow& row) {
  const auto rows = List<SampleRow>({row});
  Tensor<int32_t, 1> token({1}), last({1});
  Tensor<float, 1> log_prob({1});
  ops.Sample({logits, vocab, rows, token, log_prob, last});
  return {token(0), log_prob(0), last(0)};
}

Tensor<float, 2> Logits(const std::vector<float>& values) {
  Tensor<float, 2> logits({1, static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), logits.data());
  return logits;
}

template <typename B>
using SampleTest = OpTest<B>;
TYPED_TEST_SUITE(SampleTest, Backends);

TYPED_TEST(SampleTest, GreedyTakesTheLargestAndTheLowerIdOfTies) {
  auto& ops = this->backend_.ops;
  const Drawn drawn = Sample(ops, Logits({1, 3, 2, 3, 9}), 4, Row(0));
  EXPECT_EQ(drawn.token, 1);
  EXPECT_EQ(drawn.last_token, 1);
  EXPECT_NEAR(drawn.log_prob, -std::log(2 + std::exp(-1.0) + std::exp(-2.0)), 1e-6);
}

TYPED_TEST(SampleTest, NanIsNeverChosen) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  auto& ops = this->backend_.ops;
  for (uint32_t position = 0; position < 50; ++position) {
    for (const SampleRow& row :
         {Row(0), Row(1, 0, 1, 0, 1, position), Row(1, 2, 0.9f, 0, 1, position)}) {
      const Drawn drawn = Sample(ops, Logits({nan, 1, nan, 0.5f}), 4, row);
      EXPECT_TRUE(drawn.token == 1 || drawn.token == 3) << drawn.token;
      EXPECT_TRUE(std::isfinite(drawn.log_prob));
    }
  }
}

// Which ids are ever drawn, with what frequency.
template <typename OpsType>
std::map<int32_t, double> Frequencies(OpsType& ops, const Tensor<float, 2>& logits, SampleRow row) {
  constexpr int kDraws = 4000;
  std::map<int32_t, double> counts;
  for (row.position = 0; row.position < kDraws; ++row.position) {
    counts[Sample(ops, logits, static_cast<int32_t>(logits.size()), row).token] += 1.0 / kDraws;
  }
  return counts;
}

TYPED_TEST(SampleTest, FollowsTheProbabilitiesThatTheCutsLeave) {
  auto& ops = this->backend_.ops;
  // Probabilities 0.1, 0.4, 0.2, 0.3.
  const auto logits = Logits({std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)});
  auto all = Frequencies(ops, logits, Row(1));
  EXPECT_NEAR(all[0], 0.1, 0.03);
  EXPECT_NEAR(all[1], 0.4, 0.03);
  EXPECT_NEAR(all[3], 0.3, 0.03);
  auto top_k = Frequencies(ops, logits, Row(1, 2));
  EXPECT_EQ(top_k.size(), 2u);
  EXPECT_NEAR(top_k[1], 4.0 / 7, 0.03);
  EXPECT_NEAR(top_k[3], 3.0 / 7, 0.03);
  // Of what top_k = 3 left (0.9), 0.75 is reached by 0.4 + 0.3.
  auto top_p = Frequencies(ops, logits, Row(1, 3, 0.75f));
  EXPECT_EQ(top_p.size(), 2u);
  EXPECT_NEAR(top_p[1], 4.0 / 7, 0.03);
  auto min_p = Frequencies(ops, logits, Row(1, 0, 1, 0.6f));
  EXPECT_EQ(min_p.size(), 2u);
  EXPECT_NEAR(min_p[3], 3.0 / 7, 0.03);
  // At temperature 1/2 the probabilities are squared.
  auto sharp = Frequencies(ops, logits, Row(0.5f));
  EXPECT_NEAR(sharp[1], 0.16 / 0.30, 0.03);
}

TYPED_TEST(SampleTest, AlwaysKeepsTheBest) {
  auto& ops = this->backend_.ops;
  for (const SampleRow& row : {Row(1, 1), Row(1, 0, 1e-6f), Row(1, 0, 1, 1.0f), Row(1e-4f)}) {
    EXPECT_EQ(Sample(ops, Logits({0, 2, 5, 5}), 3, row).token, 2);
  }
  // Ties are cut by id.
  EXPECT_EQ(Sample(ops, Logits({5, 5, 5, 5}), 4, Row(1, 1, 1, 0, 9, 9)).token, 0);
}

TYPED_TEST(SampleTest, AgreesWithTheReferenceRowByRow) {
  constexpr int64_t kRows = 40, kVocab = 3000;
  const auto logits = Normal<float, 2>({kRows, kVocab + 5}, 1, 3);
  Tensor<SampleRow, 1> rows({kRows});
  for (int s = 0; s < kRows; ++s) {
    rows(s) = Row(s % 4 == 0 ? 0.0f : 0.3f * static_cast<float>(s % 5 + 1),
                  s % 3 == 0 ? 0 : 20 * s,
                  s % 2 == 0 ? 1.0f : 0.5f + 0.01f * static_cast<float>(s),
                  s % 5 == 0 ? 0.05f : 0.0f,
                  0x123456789abcdefull * static_cast<uint64_t>(s),
                  static_cast<uint32_t>(s));
    rows(s).index = static_cast<uint32_t>(s % 2);
    rows(s).lane = static_cast<int32_t>(kRows - 1 - s);
  }
  Tensor<int32_t, 1> token({kRows}), want_token({kRows}), last({kRows}), want_last({kRows});
  Tensor<float, 1> log_prob({kRows}), want_log_prob({kRows});
  this->backend_.ops.Sample({logits, kVocab, rows, token, log_prob, last});
  this->reference_.Sample({logits, kVocab, rows, want_token, want_log_prob, want_last});
  EXPECT_TRUE(Same(token.view(), want_token.view()));
  EXPECT_TRUE(Same(last.view(), want_last.view()));
  EXPECT_TRUE(Close(log_prob.view(), want_log_prob.view(), kLogProb));
}

}  // namespace
}  // namespace asynctls::testing
