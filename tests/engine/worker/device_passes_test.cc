// SPDX-License-Identifier: Apache-2.0
// A rank on a device: memory of its own, a stream, prompt and decode rows in passes of their own,
// decode passes padded and replayed. Whatever it is asked, it must answer the bits that the same
// ops give in host memory, in one pass.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <thread>

#include "engine/worker/key_codes.h"
#include "engine/worker/rank_model.h"
#include "tests/testing/device_ops.h"
#include "tests/testing/rank_driver.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

using testing::DeviceOps;
using ::testing::HasSubstr;

constexpr uint32_t kVocab = 67;

// What must be equal: everything but times, by lane (the order of decode rows is nobody's
// business).
std::string Comparable(v1::StepResult result) {
  result.clear_phases();
  result.clear_idle_seconds();
  const auto by_lane = [](const auto& a, const auto& b) { return a.lane() < b.lane(); };
  std::sort(result.mutable_sampled()->begin(), result.mutable_sampled()->end(), by_lane);
  std::sort(result.mutable_reads()->begin(), result.mutable_reads()->end(), by_lane);
  std::sort(
      result.mutable_prompt_tokens()->begin(), result.mutable_prompt_tokens()->end(), by_lane);
  return result.DebugString();
}

class DevicePassesTest : public ::testing::Test {
 protected:
  DevicePassesTest() {
    tiny_.Write(dir_.path());
    request_ = InitFor(dir_.path());
    request_.set_kv_bytes(uint64_t{8} << 20);
    request_.set_max_step_tokens(100);
    request_.set_dense_below(40);
  }
  template <Ops B>
  std::unique_ptr<RankModel<B>> Make(v1::InitReply* told = nullptr) {
    v1::InitReply reply;
    auto model = RankModel<B>::Create(request_, std::make_unique<B>(), reply);
    EXPECT_TRUE(model.ok()) << model.status();
    if (told != nullptr) *told = reply;
    SetPlainTables(**model);
    return *std::move(model);
  }

  TinyModel tiny_;
  TempDir dir_;
  v1::InitRequest request_;
};

// A random life of eight lanes, told to both ranks. As from the engine, a lane is released when the
// last step that had work of it may have ended, with another one under way.
class Lives {
 public:
  explicit Lives(uint32_t seed) : random_(seed) {}

  template <Ops B>
  void Step(RankDriver<B>& driver, std::mt19937 random) {
    const auto draw = [&](uint32_t below) { return static_cast<uint32_t>(random() % below); };
    for (uint32_t id = 0; id < lanes_.size(); ++id) {
      Lane& lane = lanes_[id];
      if (lane.ended) {
        driver.Release(id);
        lane = Lane();
      }
      if (lane.started && lane.generated > 12 && draw(3) == 0) {
        lane.ended = true;
        continue;
      }
      if (!lane.started && draw(3) == 0) Start(driver, id, draw);
      if (lane.started && draw(8) != 0) Work(driver, id, draw);
    }
    if (draw(4) == 0) driver.ReportBlocks();
  }
  // Both copies of the lives take the same step.
  std::mt19937 Next() { return std::mt19937(random_()); }

 private:
  struct Lane {
    bool started = false, ended = false;
    std::vector<uint32_t> prompt;
    size_t done = 0;
    size_t tail = 0;
    int generated = 0;
  };

  template <Ops B, typename Draw>
  void Start(RankDriver<B>& driver, uint32_t id, const Draw& draw) {
    Lane& lane = lanes_[id];
    lane.started = true;
    for (uint32_t n = 1 + draw(120); n > 0; --n) lane.prompt.push_back(draw(kVocab));
    lane.tail = draw(3);
    const v1::AttentionMode modes[] = {
        v1::ATTENTION_MODE_DENSE, v1::ATTENTION_MODE_EXACT, v1::ATTENTION_MODE_LAGGED};
    v1::LaneStart& start = driver.Start(id, Attend(modes[draw(3)], 10 + draw(60), 2 + draw(2)));
    v1::SamplingParams& s = *start.mutable_sampling();
    s.set_seed(draw(1000));
    s.set_temperature(static_cast<float>(draw(2)));
    if (draw(3) == 0) {
      s.set_repetition_penalty(1.3f);
      s.set_presence_penalty(0.5f);
      for (uint32_t n = draw(5); n > 0; --n) start.add_prompt_ids(draw(kVocab));
    }
    if (draw(3) == 0) (*s.mutable_logit_bias())[draw(kVocab)] = 2.5f;
    if (draw(3) == 0) {
      s.set_min_tokens(3);
      s.add_suppressed_ids(draw(kVocab));
    }
    if (draw(3) == 0) s.set_top_log_probs(draw(5));
    if (draw(3) == 0) {
      s.set_prompt_log_probs(true);
      s.set_prompt_top_log_probs(draw(3));
    }
  }

  template <Ops B, typename Draw>
  void Work(RankDriver<B>& driver, uint32_t id, const Draw& draw) {
    Lane& lane = lanes_[id];
    const size_t filled = lane.prompt.size() - std::min(lane.tail, lane.prompt.size() - 1);
    const auto next = [&](size_t at) {
      return at < lane.prompt.size() ? std::optional(lane.prompt[at]) : std::nullopt;
    };
    if (lane.done < filled) {
      const size_t count = std::min<size_t>(1 + draw(11), filled - lane.done);
      const auto rows = std::span<const uint32_t>(lane.prompt).subspan(lane.done, count);
      lane.done += count;
      driver.Prefill(id, rows, lane.done == lane.prompt.size(), next(lane.done));
    } else if (lane.done < lane.prompt.size()) {
      const uint32_t token = lane.prompt[lane.done++];
      driver.Decode(id, token, next(lane.done));
    } else {
      driver.Decode(id);
      ++lane.generated;
    }
  }

  std::array<Lane, 8> lanes_;
  std::mt19937 random_;
};

TEST_F(DevicePassesTest, AnswersWhatOnePassInHostMemoryAnswers) {
  const auto host = Make<RefOps>();
  const auto device = Make<DeviceOps>();
  RankDriver<RefOps> host_driver(*host);
  RankDriver<DeviceOps> device_driver(*device);
  Lives host_lives(7), device_lives(7);
  int sampled = 0;
  for (int step = 0; step < 250; ++step) {
    host_lives.Step(host_driver, host_lives.Next());
    device_lives.Step(device_driver, device_lives.Next());
    const v1::StepResult want = host_driver.Run();
    ASSERT_EQ(Comparable(device_driver.Run()), Comparable(want)) << "step " << step;
    sampled += want.sampled_size();
  }
  EXPECT_GT(sampled, 500);
  EXPECT_GT(device->ops().graphs(), 10u);
  EXPECT_GT(device->ops().replayed(), 20);
}

// While a step is under way the next one is packed, and put on the stream behind it: no memory of
// the first may be touched before it has left, or been read.
TEST_F(DevicePassesTest, AStepIsBegunWhileAnotherIsUnderWay) {
  const auto host = Make<RefOps>();
  v1::InitReply reply;
  const auto device = Make<DeviceOps>(&reply);
  EXPECT_EQ(host->depth(), 1);
  EXPECT_EQ(device->depth(), 2);
  EXPECT_EQ(reply.plans_in_flight(), 2u);
  RankDriver<RefOps> host_driver(*host);
  RankDriver<DeviceOps> device_driver(*device);
  Lives host_lives(11), device_lives(11);
  std::deque<v1::StepResult> want;
  for (int step = 0; step < 250; ++step) {
    host_lives.Step(host_driver, host_lives.Next());
    device_lives.Step(device_driver, device_lives.Next());
    want.push_back(host_driver.Run());
    device_driver.Begin();
    if (step == 0) continue;
    const v1::StepResult result = device_driver.End();
    ASSERT_EQ(Comparable(result), Comparable(want.front())) << "step " << step;
    want.pop_front();
    EXPECT_EQ(result.has_idle_seconds(), step > 1);
  }
  EXPECT_EQ(Comparable(device_driver.End()), Comparable(want.front()));
  EXPECT_GT(device->ops().replayed(), 20);
}

// The clock of the make-believe device counts what it runs.
TEST_F(DevicePassesTest, TellsHowLongTheDeviceWorkedAndHowLongItDidNot) {
  const auto device = Make<DeviceOps>();
  RankDriver<DeviceOps> driver(*device);
  driver.Start(0, Attend(v1::ATTENTION_MODE_EXACT, 30, 2));
  const std::vector<uint32_t> prompt(50, 7);
  const auto device_seconds = [](const v1::StepResult& result) {
    for (const auto& phase : result.phases()) {
      if (phase.name() == "device") return phase.seconds();
    }
    return -1.0;
  };
  const v1::StepResult first = driver.Prompt(0, prompt, 50);
  EXPECT_FALSE(first.has_idle_seconds());
  EXPECT_GT(device_seconds(first), 20e-6) << "the ops of two layers";
  driver.Decode(0);
  const v1::StepResult second = driver.Run();
  EXPECT_GT(device_seconds(second), 20e-6);
  // Sending and fetching is neither: sampled tokens and counts up, slots and two inputs down.
  EXPECT_GT(second.idle_seconds(), 2e-6);
  EXPECT_LT(second.idle_seconds(), 12e-6);
}

TEST_F(DevicePassesTest, CalibratesToTheSameTables) {
  std::vector<uint32_t> tokens;
  for (uint32_t i = 0; i < 300; ++i) tokens.push_back((i * 31 + i * i) % kVocab);
  request_.set_dense_layers(2);
  const auto host = Make<RefOps>();
  const auto device = Make<DeviceOps>();
  EXPECT_EQ(device->fingerprint(), host->fingerprint());
  const auto want = Calibrate(*host, tokens, "test", {});
  const auto got = Calibrate(*device, tokens, "test", {});
  ASSERT_TRUE(want.ok() && got.ok()) << want.status() << got.status();
  for (int layer = 0; layer < 2; ++layer) {
    const View<const float, 3> a = want->table(layer).encode, b = got->table(layer).encode;
    EXPECT_TRUE(std::equal(a.data, a.data + a.size(), b.data));
  }
}

TEST_F(DevicePassesTest, SyntheticWeightsAreTheSame) {
  request_.set_weights(v1::WEIGHT_SOURCE_SYNTHETIC);
  request_.set_synthetic_seed(5);
  v1::InitReply reply;
  const auto device = Make<DeviceOps>(&reply);
  EXPECT_EQ(device->fingerprint(), Make<RefOps>()->fingerprint());
  EXPECT_EQ(reply.device(), "make-believe device");
}

// Tokens and log-probabilities of a group of two ranks.
template <Ops B>
std::vector<std::pair<uint32_t, float>> RunTwoRanks(v1::InitRequest request) {
  request.set_ranks(2);
  request.set_rendezvous(*GlooCommunicator::MakeRendezvous());
  std::vector<std::pair<uint32_t, float>> out;
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&out, request, rank]() mutable {
      request.set_rank(rank);
      v1::InitReply reply;
      auto model = RankModel<B>::Create(request, std::make_unique<B>(), reply);
      ASSERT_TRUE(model.ok()) << model.status();
      SetPlainTables(**model);
      RankDriver<B> driver(**model);
      std::vector<uint32_t> prompt;
      for (uint32_t i = 0; i < 90; ++i) prompt.push_back(i * i % kVocab);
      driver.Start(0, Attend(v1::ATTENTION_MODE_EXACT, 30, 2));
      driver.Prompt(0, prompt, 60);
      for (int i = 0; i < 6; ++i) {
        driver.Decode(0);
        const v1::StepResult result = driver.Run();
        if (rank == 0) out.push_back({result.sampled(0).token(), result.sampled(0).log_prob()});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return out;
}
TEST_F(DevicePassesTest, TwoRanksMeetInHostMemory) {
  const auto want = RunTwoRanks<RefOps>(request_);
  EXPECT_EQ(want.size(), 6u);
  EXPECT_EQ(RunTwoRanks<DeviceOps>(request_), want);
}

TEST_F(DevicePassesTest, RefusesTheBoundSelector) {
  request_.set_bound_selector(true);
  v1::InitReply reply;
  const absl::Status status =
      RankModel<DeviceOps>::Create(request_, std::make_unique<DeviceOps>(), reply).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("bound_selector is true"));
}

}  // namespace
}  // namespace asynctls
