// SPDX-License-Identifier: Apache-2.0
// What a rank does with its logits: penalties over the steps of a sequence, bans, the sampled
// vocabulary, log-probabilities of prompt and reply, and the blocks that decode rows read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <set>
#include <thread>

#include "engine/worker/rank_model.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/ref/ref_ops.h"
#include "tests/testing/rank_driver.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

using ::testing::ElementsAreArray;

constexpr int kVocab = 67;

template <Ops B>
std::unique_ptr<RankModel<B>> MakeModel(const v1::InitRequest& request) {
  std::unique_ptr<B> ops;
  if constexpr (std::is_constructible_v<B, int>)
    ops = std::make_unique<B>(1);
  else
    ops = std::make_unique<B>();
  v1::InitReply reply;
  auto model = RankModel<B>::Create(request, std::move(ops), reply);
  EXPECT_TRUE(model.ok()) << model.status();
  SetPlainTables(**model);
  return *std::move(model);
}

std::vector<uint32_t> Ids(uint32_t count, uint32_t seed) {
  std::vector<uint32_t> ids;
  for (uint32_t i = 0; i < count; ++i) ids.push_back((seed * 7919 + i * i * 31 + i * 17) % kVocab);
  return ids;
}

template <typename B>
class RankSamplingTest : public ::testing::Test {
 protected:
  RankSamplingTest() {
    tiny_.Write(dir_.path());
    request_ = InitFor(dir_.path());
    request_.set_kv_bytes(uint64_t{8} << 20);
    request_.set_max_step_tokens(300);
  }

  TinyModel tiny_;
  TempDir dir_;
  v1::InitRequest request_;
};
using Both = ::testing::Types<RefOps, CpuOps>;
TYPED_TEST_SUITE(RankSamplingTest, Both);

// A sequence whose greedy tokens are worked out here from the raw logits and all its tokens.
struct Reader {
  std::set<uint32_t> prompt;
  std::map<uint32_t, int> generated;
  float repetition, frequency, presence;
  int changed = 0;  // tokens that are not the likeliest

  uint32_t Expect(View<const float, 1> logits) {
    std::vector<float> l(logits.begin(), logits.begin() + kVocab);
    const auto best = [&] {
      return static_cast<uint32_t>(std::max_element(l.begin(), l.end()) - l.begin());
    };
    const uint32_t likeliest = best();
    for (uint32_t id = 0; id < kVocab; ++id) {
      const int count = generated.count(id) ? generated[id] : 0;
      if (count > 0 || prompt.count(id))
        l[id] = l[id] > 0 ? l[id] / repetition : l[id] * repetition;
      l[id] -= frequency * static_cast<float>(count);
      if (count > 0) l[id] -= presence;
    }
    changed += best() != likeliest;
    return best();
  }
  v1::LaneStart& Set(v1::LaneStart& start) const {
    start.mutable_sampling()->set_repetition_penalty(repetition);
    start.mutable_sampling()->set_frequency_penalty(frequency);
    start.mutable_sampling()->set_presence_penalty(presence);
    for (const uint32_t id : prompt) start.add_prompt_ids(id);
    return start;
  }
};

// Runs `steps` more tokens of lane 0, each against the Reader's own.
template <Ops B>
void ExpectTokens(RankModel<B>& model,
                  RankDriver<B>& driver,
                  v1::StepResult result,
                  Reader& reader,
                  int steps,
                  uint32_t lane = 0) {
  for (int i = 0; i < steps; ++i) {
    int64_t row = 0;
    while (result.sampled(static_cast<int>(row)).lane() != lane) ++row;
    const uint32_t token = result.sampled(static_cast<int>(row)).token();
    ASSERT_EQ(token, reader.Expect(model.logits()[row])) << "token " << i;
    ++reader.generated[token];
    driver.Decode(lane);
    result = driver.Run();
  }
}

TYPED_TEST(RankSamplingTest, PenaltiesFollowTheHistory) {
  const auto model = MakeModel<TypeParam>(this->request_);
  RankDriver<TypeParam> driver(*model);
  const std::vector<uint32_t> prompt = Ids(30, 1);
  Reader first{{prompt.begin(), prompt.end()}, {}, 1.4f, 0.5f, 0.25f};
  first.Set(driver.Start(0, Attend(v1::ATTENTION_MODE_DENSE)));
  ExpectTokens(*model, driver, driver.Prompt(0, prompt, 12), first, 20);
  EXPECT_GT(first.changed, 3);
  // The lane's next sequence begins with nothing.
  driver.Release(0);
  const std::vector<uint32_t> other = Ids(11, 5);
  Reader second{{other.begin(), other.end()}, {}, 1.0f, 0.9f, 0.1f};
  second.Set(driver.Start(0, Attend(v1::ATTENTION_MODE_DENSE)));
  ExpectTokens(*model, driver, driver.Prompt(0, other, 300), second, 12);
  // One without penalties in between leaves nothing behind either.
  driver.Release(0);
  Reader third{{}, {}, 1.0f, 0.0f, 0.0f};
  driver.Start(0, Attend(v1::ATTENTION_MODE_DENSE));
  ExpectTokens(*model, driver, driver.Prompt(0, prompt, 300), third, 5);
}

TYPED_TEST(RankSamplingTest, PenaltiesSeeThePromptBehindAReusedPrefix) {
  const auto model = MakeModel<TypeParam>(this->request_);
  RankDriver<TypeParam> driver(*model);
  std::vector<uint32_t> prompt = Ids(140, 3);
  // The tail has few ids, so the penalty shows whether the prefix counts.
  std::fill(prompt.begin() + 128, prompt.end(), prompt[0]);
  driver.Start(1, Attend(v1::ATTENTION_MODE_DENSE));
  driver.Prompt(1, prompt, 300);
  std::vector<uint32_t> shared(driver.blocks(1).begin(), driver.blocks(1).begin() + 2);
  Reader reader{{prompt.begin(), prompt.end()}, {}, 2.0f, 0, 0};
  reader.Set(driver.Start(0, Attend(v1::ATTENTION_MODE_DENSE), shared, 2 * kBlockPositions));
  const v1::StepResult result =
      driver.Prompt(0, std::span(prompt).subspan(2 * kBlockPositions), 300);
  ExpectTokens(*model, driver, result, reader, 10);
}

TYPED_TEST(RankSamplingTest, CompanyChangesNothing) {
  const auto model = MakeModel<TypeParam>(this->request_);
  RankDriver<TypeParam> driver(*model);
  const std::vector<uint32_t> prompt = Ids(30, 1);
  Reader readers[2] = {{{prompt.begin(), prompt.end()}, {}, 1.4f, 0.5f, 0.25f},
                       {{}, {}, 1, 0, -0.5f}};
  Reader plain{{}, {}, 1, 0, 0};
  for (uint32_t lane = 0; lane < 2; ++lane) {
    readers[lane].Set(driver.Start(lane, Attend(v1::ATTENTION_MODE_DENSE)));
  }
  driver.Start(2, Attend(v1::ATTENTION_MODE_DENSE));
  for (uint32_t lane = 0; lane < 3; ++lane) driver.Prefill(lane, prompt, true);
  v1::StepResult result = driver.Run();
  for (int step = 0; step < 12; ++step) {
    for (int lane = 0; lane < 3; ++lane) {
      Reader& reader = lane < 2 ? readers[lane] : plain;
      const uint32_t token = result.sampled(lane).token();
      ASSERT_EQ(token, reader.Expect(model->logits()[lane])) << "lane " << lane;
      ++reader.generated[token];
      driver.Decode(static_cast<uint32_t>(lane));
    }
    result = driver.Run();
  }
}

TYPED_TEST(RankSamplingTest, MinTokensBansItsIdsUntilThen) {
  const auto model = MakeModel<TypeParam>(this->request_);
  RankDriver<TypeParam> driver(*model);
  v1::SamplingParams* s = driver.Start(0, Attend(v1::ATTENTION_MODE_DENSE)).mutable_sampling();
  s->set_min_tokens(3);
  s->add_suppressed_ids(5);
  s->add_suppressed_ids(6);
  (*s->mutable_logit_bias())[5] = 100;
  (*s->mutable_logit_bias())[9] = 50;
  v1::StepResult result = driver.Prompt(0, Ids(30, 1), 300);
  std::vector<uint32_t> tokens;
  for (int i = 0; i < 5; ++i) {
    tokens.push_back(result.sampled(0).token());
    driver.Decode(0);
    result = driver.Run();
  }
  EXPECT_THAT(tokens, ElementsAreArray({9, 9, 9, 5, 5}));
}

TYPED_TEST(RankSamplingTest, PaddedRowsOfTheVocabularyAreNeverSampled) {
  const auto most = [&](uint32_t vocab) {
    this->request_.set_sampled_vocab(vocab);
    const auto model = MakeModel<TypeParam>(this->request_);
    RankDriver<TypeParam> driver(*model);
    v1::SamplingParams* s = driver.Start(0, Attend(v1::ATTENTION_MODE_DENSE)).mutable_sampling();
    s->set_temperature(10);
    s->set_top_log_probs(20);
    v1::StepResult result = driver.Prompt(0, Ids(30, 1), 300);
    uint32_t largest = 0;
    for (int i = 0; i < 60; ++i) {
      largest = std::max(largest, result.sampled(0).token());
      for (const uint32_t id : result.sampled(0).top().ids()) largest = std::max(largest, id);
      driver.Decode(0);
      result = driver.Run();
    }
    return largest;
  };
  EXPECT_GE(most(0), 40u);
  EXPECT_LT(most(40), 40u);
}

// ------------------------------------------------------------------------- log-probabilities --

// log softmax of a row.
std::vector<double> LogSoftmax(View<const float, 1> logits) {
  double total = 0;
  for (int id = 0; id < kVocab; ++id) total += std::exp(static_cast<double>(logits[id]));
  std::vector<double> out;
  for (int id = 0; id < kVocab; ++id) out.push_back(logits[id] - std::log(total));
  return out;
}

// The k largest, ties to the lower id.
std::vector<uint32_t> Likeliest(const std::vector<double>& log_probs, size_t k) {
  std::vector<uint32_t> ids(log_probs.size());
  for (uint32_t i = 0; i < ids.size(); ++i) ids[i] = i;
  std::stable_sort(
      ids.begin(), ids.end(), [&](uint32_t a, uint32_t b) { return log_probs[a] > log_probs[b]; });
  ids.resize(k);
  return ids;
}

// Of a whole prompt, as the steps report them.
struct PromptScores {
  std::vector<uint32_t> bits;  // of the log-probabilities
  std::vector<float> log_probs;
  std::vector<v1::TopIds> top;

  void Add(const v1::StepResult& result, uint32_t lane) {
    for (const v1::PromptTokens& tokens : result.prompt_tokens()) {
      if (tokens.lane() != lane) continue;
      EXPECT_EQ(tokens.start(), log_probs.size() + 1);
      for (const float p : tokens.log_probs()) {
        bits.push_back(std::bit_cast<uint32_t>(p));
        log_probs.push_back(p);
      }
      top.insert(top.end(), tokens.top().begin(), tokens.top().end());
    }
  }
};

// The last `tail` tokens as decode rows. Company: two other lanes that work in the same steps.
template <Ops B>
PromptScores Score(const v1::InitRequest& request,
                   std::span<const uint32_t> prompt,
                   size_t chunk,
                   size_t tail,
                   bool company) {
  const auto model = MakeModel<B>(request);
  RankDriver<B> driver(*model);
  const auto start = [&](uint32_t lane, uint32_t top) {
    v1::SamplingParams* s = driver.Start(lane, Attend(v1::ATTENTION_MODE_DENSE)).mutable_sampling();
    s->set_prompt_log_probs(true);
    s->set_prompt_top_log_probs(top);
  };
  const std::vector<uint32_t> other = Ids(90, 8);
  if (company) {
    start(4, 0);
    driver.Start(5, Attend(v1::ATTENTION_MODE_DENSE));
    driver.Prompt(5, other, 300);
  }
  start(2, 5);
  PromptScores scores;
  for (size_t done = 0; done < prompt.size();) {
    if (company && done < 3 * chunk) {
      driver.Prefill(4, std::span(other).subspan(done / chunk * 30, 30), false, 1);
    }
    if (company) driver.Decode(5);
    const size_t left = prompt.size() - done;
    const size_t count = left > tail ? std::min(chunk, left - tail) : 1;
    std::optional<uint32_t> next;
    if (count < left) next = prompt[done + count];
    if (left > tail) {
      driver.Prefill(2, prompt.subspan(done, count), count == left, next);
    } else {
      driver.Decode(2, prompt[done], next);
    }
    scores.Add(driver.Run(), 2);
    done += count;
  }
  return scores;
}

TYPED_TEST(RankSamplingTest, PromptLogProbsAreThoseOfTeacherForcing) {
  const std::vector<uint32_t> prompt = Ids(90, 2);
  const PromptScores scores = Score<TypeParam>(this->request_, prompt, 300, 0, false);
  ASSERT_EQ(scores.log_probs.size(), 89u);
  ASSERT_EQ(scores.top.size(), 89u);
  const PromptScores tail = Score<TypeParam>(this->request_, prompt, 40, 6, false);
  ASSERT_EQ(tail.log_probs.size(), 89u);
  const auto model = MakeModel<TypeParam>(this->request_);
  RankDriver<TypeParam> driver(*model);
  for (uint32_t p = 1; p < prompt.size(); ++p) {
    driver.Start(0, Attend(v1::ATTENTION_MODE_DENSE));
    driver.Prompt(0, std::span(prompt).first(p), 300);
    const std::vector<double> want = LogSoftmax(model->logits()[0]);
    driver.Release(0);
    EXPECT_NEAR(scores.log_probs[p - 1], want[prompt[p]], 1e-5) << "position " << p;
    EXPECT_NEAR(tail.log_probs[p - 1], want[prompt[p]], 0.05) << "position " << p;
    const v1::TopIds& top = scores.top[p - 1];
    EXPECT_THAT(top.ids(), ElementsAreArray(Likeliest(want, 5)));
    for (int k = 0; k < 5; ++k) EXPECT_NEAR(top.log_probs(k), want[top.ids(k)], 1e-5);
  }
}

TYPED_TEST(RankSamplingTest, PromptLogProbsDoNotDependOnChunksOrCompany) {
  const std::vector<uint32_t> prompt = Ids(200, 4);
  const PromptScores want = Score<TypeParam>(this->request_, prompt, 300, 0, false);
  ASSERT_EQ(want.bits.size(), 199u);
  EXPECT_EQ(Score<TypeParam>(this->request_, prompt, 7, 0, false).bits, want.bits);
  EXPECT_EQ(Score<TypeParam>(this->request_, prompt, 64, 0, false).bits, want.bits);
  EXPECT_EQ(Score<TypeParam>(this->request_, prompt, 37, 0, true).bits, want.bits);
  this->request_.set_max_lanes(100);  // tiles of another size
  EXPECT_EQ(Score<TypeParam>(this->request_, prompt, 150, 0, false).bits, want.bits);
}

TYPED_TEST(RankSamplingTest, TopIdsOfSampledTokensAreOfTheRawLogits) {
  const auto model = MakeModel<TypeParam>(this->request_);
  RankDriver<TypeParam> driver(*model);
  v1::LaneStart& start = driver.Start(1, Attend(v1::ATTENTION_MODE_DENSE));
  start.mutable_sampling()->set_top_log_probs(7);
  start.mutable_sampling()->set_presence_penalty(2);
  start.mutable_sampling()->set_temperature(0.7f);
  driver.Start(0, Attend(v1::ATTENTION_MODE_DENSE));
  driver.Prefill(0, Ids(20, 1), true);
  driver.Prefill(1, Ids(30, 2), true);
  v1::StepResult result = driver.Run();
  for (int i = 0; i < 6; ++i) {
    EXPECT_FALSE(result.sampled(0).has_top());
    EXPECT_EQ(result.prompt_tokens_size(), 0);
    const v1::SampledToken& sampled = result.sampled(1);
    const std::vector<double> want = LogSoftmax(model->logits()[1]);
    EXPECT_NEAR(sampled.log_prob(), want[sampled.token()], 1e-5);
    EXPECT_THAT(sampled.top().ids(), ElementsAreArray(Likeliest(want, 7)));
    for (int k = 0; k < 7; ++k) {
      EXPECT_NEAR(sampled.top().log_probs(k), want[sampled.top().ids(k)], 1e-5);
    }
    driver.Decode(0);
    driver.Decode(1);
    result = driver.Run();
  }
}

// ------------------------------------------------------------------------------ the other parts --

TYPED_TEST(RankSamplingTest, BlockHeatIsWhereItIsAskedFor) {
  this->request_.set_dense_layers(1);
  const auto model = MakeModel<TypeParam>(this->request_);
  RankDriver<TypeParam> driver(*model);
  driver.Start(0, Attend(v1::ATTENTION_MODE_EXACT, 80, 3));
  driver.Start(1, Attend(v1::ATTENTION_MODE_DENSE));
  driver.Prompt(0, Ids(299, 1), 300);
  driver.Prompt(1, Ids(64, 1), 300);
  for (int step = 0; step < 3; ++step) {
    driver.ReportBlocks();
    driver.Decode(0);
    driver.Decode(1);
    const v1::StepResult result = driver.Run();
    ASSERT_EQ(result.reads_size(), 2);
    EXPECT_EQ(result.reads(0).lane(), 1u);  // dense rows come first
    EXPECT_EQ(result.reads(0).block_heat(), "\xff\xff");
    const std::string& heat = result.reads(1).block_heat();
    ASSERT_EQ(heat.size(), 5u);
    uint64_t pairs = 0;  // of 2 layers and 2 heads
    int cold = 0;
    for (const char share : heat) {
      const int value = static_cast<unsigned char>(share);
      EXPECT_GE(value, 128);  // the dense layer reads everything
      pairs += static_cast<uint64_t>(std::lround(value * 4 / 255.0));
      cold += value == 128;
    }
    EXPECT_EQ(pairs, result.reads(1).read().blocks());
    EXPECT_GT(cold, 0);
    EXPECT_EQ(static_cast<unsigned char>(heat[0]), 255);  // sinks
    EXPECT_EQ(static_cast<unsigned char>(heat[4]), 255);  // window
  }
  driver.Decode(0);
  EXPECT_TRUE(driver.Run().reads(0).block_heat().empty());
}

// Two ranks, each on its own thread, given the same plans.
TYPED_TEST(RankSamplingTest, TwoRanksKeepTheHistoryAndScoreAsOne) {
  const std::vector<uint32_t> prompt = Ids(70, 2);
  const PromptScores one = Score<TypeParam>(this->request_, prompt, 30, 0, false);
  absl::StatusOr<std::string> rendezvous = GlooCommunicator::MakeRendezvous();
  ASSERT_TRUE(rendezvous.ok());
  this->request_.set_ranks(2);
  this->request_.set_rendezvous(*rendezvous);
  std::vector<uint32_t> tokens[2];
  PromptScores scores[2];
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      v1::InitRequest mine = this->request_;
      mine.set_rank(rank);
      const auto model = MakeModel<TypeParam>(mine);
      RankDriver<TypeParam> driver(*model);
      Reader reader{{prompt.begin(), prompt.end()}, {}, 1.4f, 0.5f, 0.25f};
      v1::LaneStart& start = reader.Set(driver.Start(0, Attend(v1::ATTENTION_MODE_DENSE)));
      start.mutable_sampling()->set_prompt_log_probs(true);
      v1::StepResult result;
      for (size_t done = 0; done < 70; done += 35) {
        std::optional<uint32_t> next;
        if (done == 0) next = prompt[35];
        driver.Prefill(0, std::span(prompt).subspan(done, 35), done > 0, next);
        result = driver.Run();
        scores[rank].Add(result, 0);
      }
      for (int i = 0; i < 12; ++i) {  // every rank holds all logits
        tokens[rank].push_back(result.sampled(0).token());
        EXPECT_EQ(tokens[rank].back(), reader.Expect(model->logits()[0])) << "rank " << rank;
        ++reader.generated[tokens[rank].back()];
        driver.Decode(0);
        result = driver.Run();
      }
      EXPECT_GT(reader.changed, 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(tokens[0], tokens[1]);
  EXPECT_TRUE(scores[1].log_probs.empty());  // rank 0 reports
  ASSERT_EQ(scores[0].log_probs.size(), one.log_probs.size());
  for (size_t i = 0; i < one.log_probs.size(); ++i) {
    EXPECT_NEAR(scores[0].log_probs[i], one.log_probs[i], 0.1) << i;
  }
}

}  // namespace
}  // namespace asynctls
