// SPDX-License-Identifier: Apache-2.0
// What must hold of a rank whatever the backend: a sequence does not depend on its company, on
// chunk borders, on where its blocks lie or who wrote them; lagged runs; two ranks equal one.
#include "engine/worker/rank_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <thread>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/ref/ref_ops.h"
#include "tests/testing/golden.h"
#ifdef ASYNCTLS_TEST_GPU
#include "tests/testing/gpu.h"
#endif
#include "tests/testing/rank_driver.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

using ::testing::HasSubstr;

template <Ops B>
std::unique_ptr<B> MakeOps() {
#ifdef ASYNCTLS_TEST_GPU
  if constexpr (std::is_same_v<B, CudaOps>) return testing::NewGpu();
#endif
  if constexpr (std::is_constructible_v<B, int>) return std::make_unique<B>(2);
  if constexpr (std::is_default_constructible_v<B>) return std::make_unique<B>();
}

template <Ops B = RefOps>
std::unique_ptr<RankModel<B>> MakeModel(v1::InitRequest request) {
  request.set_bound_selector(BoundOps<B>);
  v1::InitReply reply;
  absl::StatusOr<std::unique_ptr<RankModel<B>>> model =
      RankModel<B>::Create(request, MakeOps<B>(), reply);
  EXPECT_TRUE(model.ok()) << model.status();
  SetPlainTables(**model);
  return *std::move(model);
}

std::vector<uint32_t> Ids(uint32_t count, uint32_t seed) {
  std::vector<uint32_t> ids;
  for (uint32_t i = 0; i < count; ++i) ids.push_back((seed * 7919 + i * i * 31 + i * 17) % 67);
  return ids;
}

// A tiny model, with sparse attention from the first layer and position on.
class RankModelTest : public ::testing::Test {
 protected:
  RankModelTest() {
    tiny_.Write(dir_.path());
    request_ = InitFor(dir_.path());
    request_.set_kv_bytes(uint64_t{8} << 20);
    request_.set_max_step_tokens(300);
  }

  TinyModel tiny_;
  TempDir dir_;
  v1::InitRequest request_;
};

// Tokens and the bits of their log-probs.
using Trace = std::vector<std::pair<uint32_t, uint32_t>>;

void Append(const v1::StepResult& result, uint32_t lane, Trace& trace) {
  for (const v1::SampledToken& s : result.sampled()) {
    if (s.lane() == lane) trace.push_back({s.token(), std::bit_cast<uint32_t>(s.log_prob())});
  }
}

struct Sequence {
  std::vector<uint32_t> prompt;
  v1::SparseParams sparse;
};

// One with the paper's selector where the backend has it.
std::vector<Sequence> Mixed(bool bound_selector) {
  v1::SparseParams bound = Attend(v1::ATTENTION_MODE_EXACT, 100, 4);
  if (bound_selector) bound.set_selector(v1::SELECTOR_BOUND);
  return {{Ids(260, 1), Attend(v1::ATTENTION_MODE_EXACT, 100, 3)},
          {Ids(5, 2), Attend(v1::ATTENTION_MODE_DENSE)},
          {Ids(300, 3), Attend(v1::ATTENTION_MODE_LAGGED, 100, 3)},
          {Ids(290, 4), bound}};
}

// Prompt (its last 3 tokens through the decode path) and 8 tokens, alone.
template <Ops B = RefOps>
Trace RunAlone(const v1::InitRequest& request, const Sequence& s, size_t chunk) {
  const std::unique_ptr<RankModel<B>> model = MakeModel<B>(request);
  RankDriver<B> driver(*model);
  driver.Start(0, s.sparse);
  const std::span<const uint32_t> prompt(s.prompt);
  driver.Prompt(0, prompt.first(prompt.size() - 3), chunk);
  Trace trace;
  for (const uint32_t token : prompt.last(3)) {
    driver.Decode(0, token);
    Append(driver.Run(), 0, trace);
  }
  for (int i = 0; i < 8; ++i) {
    driver.Decode(0);
    Append(driver.Run(), 0, trace);
  }
  return trace;
}

// All at once, each starting one step after the one before, in chunks of other sizes.
template <Ops B = RefOps>
std::vector<Trace> RunTogether(const v1::InitRequest& request, const std::vector<Sequence>& all) {
  const std::unique_ptr<RankModel<B>> model = MakeModel<B>(request);
  RankDriver<B> driver(*model);
  std::vector<Trace> traces(all.size());
  std::vector<size_t> done(all.size());
  bool busy = true;
  for (uint32_t step = 0; busy; ++step) {
    busy = false;
    for (uint32_t lane = 0; lane < all.size(); ++lane) {
      if (lane > step) {
        busy = true;
        continue;
      }
      if (done[lane] == 0) driver.Start(lane, all[lane].sparse);
      const std::span<const uint32_t> prompt(all[lane].prompt);
      const size_t filled = prompt.size() - 3;
      if (done[lane] < filled) {
        const size_t count = std::min<size_t>(17 + 23 * lane, filled - done[lane]);
        driver.Prefill(lane, prompt.subspan(done[lane], count));
        done[lane] += count;
      } else if (done[lane] < prompt.size()) {
        driver.Decode(lane, prompt[done[lane]++]);
      } else if (done[lane] < prompt.size() + 8) {
        driver.Decode(lane);
        ++done[lane];
      } else {
        continue;
      }
      busy = true;
    }
    const v1::StepResult result = driver.Run();
    for (uint32_t lane = 0; lane < all.size(); ++lane) Append(result, lane, traces[lane]);
  }
  return traces;
}

template <Ops B>
void ExpectIndependence(const v1::InitRequest& request) {
  const std::vector<Sequence> all = Mixed(BoundOps<B>);
  const std::vector<Trace> together = RunTogether<B>(request, all);
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(together[i].size(), 11u);
    EXPECT_EQ(together[i], RunAlone<B>(request, all[i], 300)) << "sequence " << i;
    EXPECT_EQ(together[i], RunAlone<B>(request, all[i], 7)) << "sequence " << i << ", chunks of 7";
  }
}
TEST_F(RankModelTest, ASequenceDoesNotDependOnItsCompany) { ExpectIndependence<RefOps>(request_); }
TEST_F(RankModelTest, NorOnTheCpu) { ExpectIndependence<CpuOps>(request_); }

// The three full blocks that lane 0 has filled serve lane 1.
template <Ops B>
void ExpectReusable(const v1::InitRequest& request) {
  const std::unique_ptr<RankModel<B>> model = MakeModel<B>(request);
  RankDriver<B> driver(*model);
  const std::vector<uint32_t> prompt = Ids(200, 9);
  const v1::SparseParams sparse = Attend(v1::ATTENTION_MODE_EXACT, 100, 3);
  const auto run = [&](uint32_t lane, std::span<const uint32_t> rest) {
    Trace trace;
    Append(driver.Prompt(lane, rest, 64), lane, trace);
    for (int i = 0; i < 6; ++i) {
      driver.Decode(lane);
      Append(driver.Run(), lane, trace);
    }
    return trace;
  };
  driver.Start(0, sparse);
  const Trace first = run(0, prompt);
  std::vector<uint32_t> shared(driver.blocks(0).begin(), driver.blocks(0).begin() + 3);
  driver.Start(1, sparse, shared, 3 * kBlockPositions);
  EXPECT_EQ(run(1, std::span(prompt).subspan(3 * kBlockPositions)), first);
}
TEST_F(RankModelTest, AReusedPrefixGivesTheSameTokens) { ExpectReusable<RefOps>(request_); }
TEST_F(RankModelTest, AReusedPrefixOnTheCpu) { ExpectReusable<CpuOps>(request_); }

// The last position's logits of a prompt of the demo model, bit for bit.
template <Ops B>
void ExpectChunksDoNotMatter(const Golden& golden, std::initializer_list<size_t> chunks) {
  v1::InitRequest request = InitFor(DemoModel());
  request.set_max_step_tokens(static_cast<uint32_t>(*chunks.begin()));
  request.set_max_context(20000);
  request.set_kv_bytes(uint64_t{160} << 20);
  const std::unique_ptr<RankModel<B>> model = MakeModel<B>(request);
  RankDriver<B> driver(*model);
  std::vector<float> whole;
  std::vector<uint32_t> blocks;  // the same ones each time
  for (const size_t chunk : chunks) {
    driver.Start(0, Attend(v1::ATTENTION_MODE_DENSE), blocks);
    driver.Prompt(0, golden.prompt, chunk);
    const std::vector<float> logits = LogitsOf(*model, 0);
    if (whole.empty()) whole = logits;
    EXPECT_EQ(logits, whole) << golden.prompt.size() << " tokens in chunks of " << chunk;
    blocks = driver.blocks(0);
    driver.Release(0);
    driver.Run();
  }
}
TEST(RankChunksTest, DoNotMatterOnTheCpu) {
  ExpectChunksDoNotMatter<CpuOps>(LoadGoldens()[3], {500, 170, 64});
}

TEST_F(RankModelTest, FullBudgetEqualsDenseAndIsCounted) {
  const Sequence dense{Ids(260, 1), Attend(v1::ATTENTION_MODE_DENSE)};
  const Trace want = RunAlone(request_, dense, 100);
  for (const v1::AttentionMode mode : {v1::ATTENTION_MODE_EXACT, v1::ATTENTION_MODE_LAGGED}) {
    const Trace got = RunAlone(request_, {dense.prompt, Attend(mode, 4096, 4096)}, 100);
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i].first, want[i].first) << v1::AttentionMode_Name(mode) << " token " << i;
    }
  }
}

TEST_F(RankModelTest, CountsWhatDecodeRowsRead) {
  request_.set_dense_layers(1);
  request_.set_dense_below(100);
  const std::unique_ptr<RankModel<RefOps>> model = MakeModel(request_);
  RankDriver<RefOps> driver(*model);
  driver.Start(0, Attend(v1::ATTENTION_MODE_EXACT, 80, 3));
  driver.Start(1, Attend(v1::ATTENTION_MODE_EXACT, 80, 3));
  driver.Prompt(0, Ids(299, 1), 300);
  driver.Prompt(1, Ids(50, 1), 300);
  driver.Decode(0);
  driver.Decode(1);
  const v1::StepResult result = driver.Run();
  ASSERT_EQ(result.reads_size(), 2);
  EXPECT_EQ(result.nan_heads(), 0u);
  const v1::LaneRead& below = result.reads(0);  // dense rows come first
  EXPECT_EQ(below.lane(), 1u);
  EXPECT_EQ(below.mode(), v1::ATTENTION_MODE_DENSE);
  EXPECT_EQ(below.read().tokens(), 2u * 2 * 51);
  EXPECT_EQ(below.read().bytes(), below.read().dense_bytes());
  // 300 positions, 5 blocks: one dense layer, one that attends 80 of them in 3 candidate blocks.
  const v1::KvRead& read = result.reads(1).read();
  EXPECT_EQ(result.reads(1).mode(), v1::ATTENTION_MODE_EXACT);
  EXPECT_EQ(read.dense_tokens(), 2u * 2 * 300);
  EXPECT_EQ(read.dense_blocks(), 2u * 2 * 5);
  EXPECT_EQ(read.dense_bytes(), 2u * 2 * 300 * 128);
  EXPECT_EQ(read.tokens(), 2u * (300 + 80));
  const uint64_t candidates = 3 * 64 - 20;  // the last block has 44 positions
  const KeyIndexShape& index = model->index().shape();
  EXPECT_EQ(
      read.bytes(),
      2 * (300 * 128 + 80 * 128 + 300 * index.FirstBytes() + candidates * index.SecondBytes()));
  EXPECT_LT(read.blocks(), read.dense_blocks());
}

TEST_F(RankModelTest, ABrokenPlanIsAnError) {
  const std::unique_ptr<RankModel<RefOps>> model = MakeModel(request_);
  v1::StepPlan plan;
  plan.add_work()->set_lane(3);
  EXPECT_EQ(model->Run(plan).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RankModelTest, SyntheticWeightsNeedNoFiles) {
  const TempDir dir;
  tiny_.WriteConfig(dir.path());
  request_.set_model_dir(dir.path());
  v1::InitReply reply;
  EXPECT_EQ(RankModel<RefOps>::Create(request_, std::make_unique<RefOps>(), reply).status().code(),
            absl::StatusCode::kNotFound);
  request_.set_weights(v1::WEIGHT_SOURCE_SYNTHETIC);
  RunAlone(request_, {Ids(20, 1), Attend(v1::ATTENTION_MODE_DENSE)}, 100);
}

TEST_F(RankModelTest, DescribesTheModel) {
  v1::InitReply reply;
  ASSERT_TRUE(RankModel<RefOps>::Create(request_, std::make_unique<RefOps>(), reply).ok());
  EXPECT_EQ(reply.model().architecture(), "Qwen3ForCausalLM");
  EXPECT_EQ(reply.model().vocab_size(), 67u);
  EXPECT_EQ(reply.model().max_context(), 1024u);
  EXPECT_EQ(reply.kv_bytes_per_token(), 2u * 2 * 128);
  EXPECT_EQ(reply.block_positions(), 64u);
  EXPECT_GT(reply.blocks(), 16u);
  EXPECT_GE(reply.startup_size(), 3);
  uint64_t kv_and_codes = 0;
  for (const v1::InitReply::Memory& row : reply.memory()) {
    if (row.what() == "KV" || row.what() == "key codes") kv_and_codes += row.bytes();
  }
  EXPECT_LE(kv_and_codes, request_.kv_bytes());
}

// Two ranks, each on its own thread, given the same plans; log-probs within bf16 rounding of one
// rank's, tokens equal (the demo model is sure of its answers).
template <Ops B>
void ExpectTwoRanksEqualOne(const Golden& golden) {
  v1::InitRequest request = InitFor(DemoModel());
  const auto run = [&](const v1::InitRequest& init, std::vector<std::vector<float>>& logits) {
    const std::unique_ptr<RankModel<B>> model = MakeModel<B>(init);
    RankDriver<B> driver(*model);
    driver.Start(0, Attend(v1::ATTENTION_MODE_EXACT, 4096, 4096));
    std::vector<uint32_t> tokens;
    v1::StepResult result = driver.Prompt(0, golden.prompt, 512);
    for (int i = 0; i < 12; ++i) {
      tokens.push_back(result.sampled(0).token());
      logits.push_back(LogitsOf(*model, 0));
      logits.back().resize(golden.vocab);
      driver.Decode(0);
      result = driver.Run();
    }
    return tokens;
  };
  std::vector<std::vector<float>> one_logits;
  const std::vector<uint32_t> one = run(request, one_logits);

  absl::StatusOr<std::string> rendezvous = GlooCommunicator::MakeRendezvous();
  ASSERT_TRUE(rendezvous.ok());
  request.set_ranks(2);
  request.set_rendezvous(*rendezvous);
  std::vector<uint32_t> two[2];
  std::vector<std::vector<float>> two_logits[2];
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      v1::InitRequest mine = request;
      mine.set_rank(rank);
      two[rank] = run(mine, two_logits[rank]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(two[0], one);
  EXPECT_EQ(two[1], one);
  for (size_t i = 0; i < one_logits.size(); ++i) {
    EXPECT_EQ(two_logits[0][i], two_logits[1][i]);  // the same bits on both ranks
    for (size_t v = 0; v < one_logits[i].size(); ++v) {
      EXPECT_NEAR(two_logits[0][i][v], one_logits[i][v], 0.15);
    }
  }
}

TEST(TensorParallelTest, TwoRanksEqualOne) { ExpectTwoRanksEqualOne<RefOps>(LoadGoldens()[1]); }
TEST(TensorParallelTest, TwoCpuRanksEqualOne) { ExpectTwoRanksEqualOne<CpuOps>(LoadGoldens()[3]); }

#ifdef ASYNCTLS_TEST_GPU
// The same on a GPU: head dims 32 (slow paths) and 128, ranks that share it.
class RankModelOnGpuTest : public RankModelTest {
 protected:
  void SetUp() override {
    if (testing::SharedGpu() == nullptr) GTEST_SKIP() << "no GPU on this machine";
    demo_.set_model_dir(DemoModel());
    demo_.set_kv_bytes(uint64_t{64} << 20);
  }
  v1::InitRequest demo_ = request_;
};

TEST_F(RankModelOnGpuTest, ASequenceDoesNotDependOnItsCompany) {
  ExpectIndependence<CudaOps>(request_);
  ExpectIndependence<CudaOps>(demo_);
}

TEST_F(RankModelOnGpuTest, AReusedPrefixGivesTheSameTokens) {
  ExpectReusable<CudaOps>(request_);
  ExpectReusable<CudaOps>(demo_);
}

TEST_F(RankModelOnGpuTest, ChunksDoNotMatter) {
  for (const Golden& golden : LoadGoldens()) {
    ExpectChunksDoNotMatter<CudaOps>(golden, {2048, 943, 170, 64});
  }
}

TEST_F(RankModelOnGpuTest, TwoRanksEqualOne) { ExpectTwoRanksEqualOne<CudaOps>(LoadGoldens()[3]); }

// 1,000 decode steps of the two levels, sampled at random: the same bits twice.
TEST_F(RankModelOnGpuTest, AThousandStepsAreTheSameAgain) {
  demo_.set_max_context(2000);
  const auto run = [&] {
    const std::unique_ptr<RankModel<CudaOps>> model = MakeModel<CudaOps>(demo_);
    RankDriver<CudaOps> driver(*model);
    v1::LaneStart& start = driver.Start(0, Attend(v1::ATTENTION_MODE_EXACT, 100, 3));
    start.mutable_sampling()->set_temperature(1);
    start.mutable_sampling()->set_seed(7);
    Trace trace;
    Append(driver.Prompt(0, Ids(700, 5), 300), 0, trace);
    for (int i = 0; i < 1000; ++i) {
      driver.Decode(0);
      Append(driver.Run(), 0, trace);
    }
    return trace;
  };
  const Trace first = run();
  EXPECT_EQ(first.size(), 1001u);
  EXPECT_EQ(run(), first);
}
#endif

TEST(TensorParallelTest, RefusesImpossibleSplits) {
  v1::InitRequest request = InitFor(DemoModel());
  request.set_ranks(4);
  v1::InitReply reply;
  const absl::Status status =
      RankModel<RefOps>::Create(request, std::make_unique<RefOps>(), reply).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("num_key_value_heads is 2, not divisible"));
}

}  // namespace
}  // namespace asynctls
