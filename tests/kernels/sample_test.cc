// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <random>
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

TYPED_TEST(SampleTest, PaddingWritesNothing) {
  const auto logits = Logits({1, 2, 3, 4});
  SampleRow row = Row(1);
  row.lane = -1;
  row.repetition = 2;
  row.edit_count = 1;
  const auto rows = List<SampleRow>({row});
  const auto token = List<int32_t>({-5}), last = List<int32_t>({-6});
  const auto log_prob = List<float>({7});
  this->backend_.ops.Sample({logits, 4, rows, token, log_prob, last});
  EXPECT_EQ(token(0), -5);
  EXPECT_EQ(last(0), -6);
  EXPECT_EQ(log_prob(0), 7);
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

// Cuts that keep many ids, and ties everywhere.
TYPED_TEST(SampleTest, WideCutsAgreeWithTheReference) {
  constexpr int64_t kRows = 24, kVocab = 12000;
  const auto logits = Normal<float, 2>({kRows, kVocab}, 5, 0.3f);
  Tensor<SampleRow, 1> rows({kRows});
  const int top_k[] = {0, 1, 700, 5999, 6000, 6001, 11999, 12000};
  for (int s = 0; s < kRows; ++s) {
    rows(s) = Row(1, top_k[s % 8], s < 8 ? 1.0f : 0.93f, 0, 77, static_cast<uint32_t>(s));
    if (s < 16) continue;
    for (int64_t v = 0; v < kVocab; ++v) {
      float& logit = logits(s, v);
      logit = static_cast<float>(static_cast<int>(logit * 8)) / 8;
    }
  }
  Tensor<int32_t, 1> token({kRows}), want({kRows}), last({1});
  Tensor<float, 1> log_prob({kRows});
  this->backend_.ops.Sample({logits, kVocab, rows, token, log_prob, last});
  this->reference_.Sample({logits, kVocab, rows, want, log_prob, last});
  EXPECT_TRUE(Same(token.view(), want.view()));
}

// ---------------------------------------------------------------- penalties, biases and bans --

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Rows with all that may change their logits, each row on its own lane.
struct Adjusting {
  Adjusting(int64_t rows, int64_t width, int32_t vocab)
      : vocab(vocab),
        logits({rows, width}),
        rows({rows}),
        edits({rows, kEdits}),
        generated({rows, vocab}),
        prompt({rows, (vocab + 31) / 32}),
        token({rows}),
        last({rows}),
        log_prob({rows}) {
    std::fill_n(generated.data(), generated.size(), uint16_t{0});
    std::fill_n(prompt.data(), prompt.size(), 0u);
    for (int64_t s = 0; s < rows; ++s) {
      this->rows(s) = Row(0);
      this->rows(s).lane = static_cast<int32_t>(s);
    }
  }
  void InPrompt(int64_t s, int32_t id) { prompt(s, id / 32) |= 1u << id % 32; }

  template <typename OpsType>
  void Run(OpsType& ops) {
    ops.Sample({.logits = logits,
                .vocab = vocab,
                .rows = rows,
                .token = token,
                .log_prob = log_prob,
                .last_token = last,
                .edits = edits,
                .history = {generated, prompt}});
  }

  static constexpr int kEdits = 6;
  int32_t vocab;
  Tensor<float, 2> logits;
  Tensor<SampleRow, 1> rows;
  Tensor<LogitEdit, 2> edits;
  Tensor<uint16_t, 2> generated;
  Tensor<uint32_t, 2> prompt;
  Tensor<int32_t, 1> token, last;
  Tensor<float, 1> log_prob;
};

// Four ids: 0 in the prompt, 1 generated once, 2 generated three times, 3 new.
template <typename OpsType>
int32_t Chosen(OpsType& ops,
               const std::array<float, 4>& logits,
               const SampleRow& row,
               const std::vector<LogitEdit>& edits = {}) {
  Adjusting a(1, 5, 4);
  std::copy(logits.begin(), logits.end(), a.logits.data());
  a.logits(0, 4) = 100;  // a padded row of the vocabulary
  a.rows(0) = row;
  a.InPrompt(0, 0);
  a.generated(0, 1) = 1;
  a.generated(0, 2) = 3;
  for (const LogitEdit& edit : edits) a.edits(0, a.rows(0).edit_count++) = edit;
  a.Run(ops);
  double total = 0;
  for (const float l : logits) total += std::exp(l);
  EXPECT_NEAR(a.log_prob(0), logits[a.token(0)] - std::log(total), 1e-5);  // of the raw logits
  EXPECT_EQ(a.last(0), a.token(0));
  return a.token(0);
}

SampleRow Penalties(float repetition, float frequency, float presence) {
  SampleRow row = Row(0);
  row.repetition = repetition;
  row.frequency = frequency;
  row.presence = presence;
  return row;
}

TYPED_TEST(SampleTest, RepetitionWeakensIdsOfPromptAndReply) {
  auto& ops = this->backend_.ops;
  EXPECT_EQ(Chosen(ops, {4, 4, 4, 2.1f}, Penalties(2, 0, 0)), 3);  // 2, 2, 2
  EXPECT_EQ(Chosen(ops, {4, 4, 4, 1.9f}, Penalties(2, 0, 0)), 0);
  EXPECT_EQ(Chosen(ops, {4, 4, 5, 2.0f}, Penalties(2, 0, 0)), 2);      // however often it came
  EXPECT_EQ(Chosen(ops, {-1, -1, -1, -1.9f}, Penalties(2, 0, 0)), 3);  // -2, -2, -2
  EXPECT_EQ(Chosen(ops, {-1, -1, -1, -2.1f}, Penalties(2, 0, 0)), 0);
  EXPECT_EQ(Chosen(ops, {1, 1, 1, 1.9f}, Penalties(0.5f, 0, 0)), 0);  // below 1 they gain
}

TYPED_TEST(SampleTest, FrequencyAndPresenceWeakenIdsOfTheReplyOnly) {
  auto& ops = this->backend_.ops;
  EXPECT_EQ(Chosen(ops, {1, 2, 3, 0}, Penalties(1, 0.9f, 0)), 1);  // 1, 1.1, 0.3, 0
  EXPECT_EQ(Chosen(ops, {1, 2, 3, 0}, Penalties(1, 1.1f, 0)), 0);  // 1, 0.9, -0.3, 0
  EXPECT_EQ(Chosen(ops, {1, 2, 2.5f, 0}, Penalties(1, 0, 1.4f)), 2);
  EXPECT_EQ(Chosen(ops, {1, 2, 2.3f, 0}, Penalties(1, 0, 1.4f)), 0);
  EXPECT_EQ(Chosen(ops, {1, 0, 0, 1.5f}, Penalties(1, -0.6f, 0)), 2);  // 1.8: they gain
  EXPECT_EQ(Chosen(ops, {1, 1.2f, 0, 1.5f}, Penalties(1, 0, -0.5f)), 1);
}

TYPED_TEST(SampleTest, PenaltiesComeInTheirOrder) {
  auto& ops = this->backend_.ops;
  // Id 1: 4 / 2 - 0.5 - 0.5 + 2 = 3. Subtracting first would give (4 - 1) / 2 + 2 = 3.5, adding the
  // bias first (4 + 2) / 2 - 1 = 2.
  const std::vector<LogitEdit> bias = {{.id = 1, .add = 2}};
  EXPECT_EQ(Chosen(ops, {0, 4, 0, 2.9f}, Penalties(2, 0.5f, 0.5f), bias), 1);
  EXPECT_EQ(Chosen(ops, {0, 4, 0, 3.1f}, Penalties(2, 0.5f, 0.5f), bias), 3);
}

TYPED_TEST(SampleTest, BiasesAndBans) {
  auto& ops = this->backend_.ops;
  EXPECT_EQ(Chosen(ops, {1, 2, 3, 4}, Row(0), {{0, 3.5f}}), 0);
  EXPECT_EQ(Chosen(ops, {1, 2, 3, 4}, Row(0), {{3, -100}, {2, -1.5f}}), 1);
  EXPECT_EQ(Chosen(ops, {1, 2, 3, 4}, Row(0), {{3, kNan}, {2, kNan}}), 1);
  EXPECT_EQ(Chosen(ops, {1, 2, 3, 4}, Row(0), {{3, 100}, {3, kNan}}), 2);  // a ban stays
  EXPECT_EQ(Chosen(ops, {1, 2, 3, 4}, Row(0), {{4, 100}, {2000000000, 1}}), 3);
  for (uint32_t position = 0; position < 200; ++position) {
    EXPECT_LT(Chosen(ops, {1, 2, 3, 9}, Row(1, 0, 1, 0, 1, position), {{3, kNan}}), 3);
    EXPECT_LT(Chosen(ops, {1, 2, 3, 9}, Row(1, 3, 0.9f, 0, 1, position), {{3, kNan}}), 3);
  }
}

TYPED_TEST(SampleTest, AnIdWhereNothingHasProbability) {
  auto& ops = this->backend_.ops;
  for (const SampleRow& row : {Row(0), Row(1), Row(1, 2), Row(1, 0, 0.5f)}) {
    Adjusting a(3, 4, 4);
    for (int s = 0; s < 3; ++s) {
      a.rows(s) = row;
      a.rows(s).lane = s;
      for (int id = 0; id < 4; ++id) a.logits(s, id) = s == 0 ? kNan : -kInfinity;
    }
    a.logits(1, 0) = a.logits(1, 1) = kNan;
    a.logits(2, 2) = kInfinity;
    a.Run(ops);
    EXPECT_EQ(a.token(0), 0);
    EXPECT_EQ(a.token(1), 2);
    EXPECT_EQ(a.token(2), 2);
  }
}

TYPED_TEST(SampleTest, CountsWhatPenalisedRowsSample) {
  Adjusting a(3, 4, 4);
  for (int s = 0; s < 3; ++s) {
    for (int id = 0; id < 4; ++id) a.logits(s, id) = static_cast<float>(id);
    a.generated(s, 3) = s == 2 ? 65534 : 0;
  }
  a.rows(0).lane = 1;
  a.rows(0).presence = 0.25f;
  a.rows(1).lane = 0;  // no penalty: its lane's history is nobody's
  a.rows(2).frequency = -1e-9f;
  for (int step = 0; step < 3; ++step) a.Run(this->backend_.ops);
  EXPECT_EQ(a.generated(0, 3), 0);
  EXPECT_EQ(a.generated(1, 3), 3);
  EXPECT_EQ(a.generated(1, 2), 0);
  EXPECT_EQ(a.generated(2, 3), 65535);
}

TYPED_TEST(SampleTest, FollowsTheProbabilitiesThatPenaltiesLeave) {
  constexpr int kDraws = 4000;
  Adjusting a(1, 6, 5);
  const std::array<float, 6> logits = {1.0f, -0.5f, 2.0f, 0.7f, 0.2f, 50};
  std::copy(logits.begin(), logits.end(), a.logits.data());
  a.edits(0, 0) = {.id = 3, .add = kNan};
  a.edits(0, 1) = {.id = 4, .add = 1.0f};
  // 1 / 1.25; -0.5 * 1.25; 2 / 1.25 - 2 * 0.4 - 0.3; banned; 0.2 + 1.
  const std::array<double, 5> adjusted = {0.8, -0.625, 0.5, -kInfinity, 1.2};
  double total = 0;
  for (const double l : adjusted) total += std::exp(l / 0.8);
  std::map<int32_t, double> drawn;
  for (uint32_t position = 0; position < kDraws; ++position) {
    a.rows(0) = Row(0.8f, 0, 1, 0, 7, position);
    a.rows(0).repetition = 1.25f;
    a.rows(0).frequency = 0.4f;
    a.rows(0).presence = 0.3f;
    a.rows(0).edit_count = 2;
    a.prompt(0, 0) = 0b11;
    for (int id = 0; id < 5; ++id) a.generated(0, id) = id == 2 ? 2 : 0;
    a.Run(this->backend_.ops);
    drawn[a.token(0)] += 1.0 / kDraws;
  }
  for (int id = 0; id < 5; ++id) {
    const double want = std::exp(adjusted[static_cast<size_t>(id)] / 0.8) / total;
    // Four standard deviations.
    EXPECT_NEAR(drawn[id], want, 4 * std::sqrt(want * (1 - want) / kDraws) + 1e-9) << "id " << id;
  }
}

// Everything at once on rows of every kind, ties and NaN among the logits.
void Scramble(Adjusting& a, uint32_t seed) {
  std::mt19937 random(seed);
  const auto chance = [&](int one_in) { return random() % static_cast<uint32_t>(one_in) == 0; };
  for (int64_t s = 0; s < a.rows.size(); ++s) {
    for (int64_t v = 0; v < a.logits.view().dim(1); ++v) {
      a.logits(s, v) = chance(50) ? kNan : static_cast<float>(random() % 200) / 20 - 5;
    }
    for (int32_t id = 0; id < a.vocab; ++id) {
      if (chance(8)) a.InPrompt(s, id);
      if (chance(8)) a.generated(s, id) = static_cast<uint16_t>(1 + random() % 4);
    }
    const int32_t begin = static_cast<int32_t>(s % 2);
    a.rows(s) = Row(s % 3 == 0 ? 0.0f : 0.5f * static_cast<float>(s % 4),
                    s % 5 == 0 ? 10 : 0,
                    s % 7 == 0 ? 0.8f : 1.0f,
                    s % 11 == 0 ? 0.1f : 0.0f,
                    seed,
                    static_cast<uint32_t>(s));
    a.rows(s).lane = static_cast<int32_t>(a.rows.size() - 1 - s);
    a.rows(s).repetition = s & 1 ? 1.3f : 1.0f;
    a.rows(s).frequency = s & 2 ? 0.7f : 0.0f;
    a.rows(s).presence = s & 4 ? -0.9f : 0.0f;
    a.rows(s).edit_begin = begin;
    a.rows(s).edit_count = s & 8 ? Adjusting::kEdits - begin : 0;
    for (int e = 0; e < Adjusting::kEdits; ++e) {
      a.edits(s, e) = {.id = static_cast<int32_t>(random() % static_cast<uint32_t>(a.vocab + 2)),
                       .add = e % 3 == 0 ? kNan : static_cast<float>(e) - 2};
    }
  }
}

TYPED_TEST(SampleTest, AdjustedRowsAgreeWithTheReference) {
  for (const int32_t vocab : {1, 7, 31, 32, 33, 64, 97, 1000, 3001}) {
    Adjusting got(32, vocab + 3, vocab), want(32, vocab + 3, vocab);
    Scramble(got, static_cast<uint32_t>(vocab));
    Scramble(want, static_cast<uint32_t>(vocab));
    for (int step = 0; step < 3; ++step) {  // the history grows
      got.Run(this->backend_.ops);
      want.Run(this->reference_);
      ASSERT_TRUE(Same(got.token.view(), want.token.view())) << "vocabulary of " << vocab;
      ASSERT_TRUE(Same(got.last.view(), want.last.view()));
      ASSERT_TRUE(Same(got.generated.view(), want.generated.view()));
      for (int64_t s = 0; s < 32; ++s) {
        if (std::isnan(want.log_prob(s))) {
          EXPECT_TRUE(std::isnan(got.log_prob(s)));
        } else {
          EXPECT_NEAR(got.log_prob(s), want.log_prob(s), 1e-4);
        }
        ++got.rows(s).position;
        ++want.rows(s).position;
      }
    }
  }
}

}  // namespace
}  // namespace asynctls::testing
