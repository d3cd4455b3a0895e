// SPDX-License-Identifier: Apache-2.0
// The engine on a rank of a make-believe device: with two plans in flight every reply is token for
// token what it is with one.
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "tests/testing/device_worker.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

constexpr uint32_t kVocab = 67;

struct Reply {
  std::vector<uint32_t> tokens;
  std::vector<float> log_probs, prompt_log_probs;
  std::optional<TokenEvent::Finished> finished;
};

class EngineDeviceTest : public ::testing::Test {
 protected:
  EngineDeviceTest() {
    tiny_.Write(dir_.path());
    init_.set_model_dir(dir_.path());
    init_.set_threads(1);
    init_.set_max_lanes(8);
    init_.set_max_budget(100);
    init_.set_kv_bytes(uint64_t{8} << 20);
    init_.set_max_step_tokens(64);
    init_.set_dense_below(40);
    for (uint32_t i = 0; i < 500; ++i) init_.add_calibration_tokens((i * 31 + i * i) % kVocab);
  }

  // The same every time.
  static std::vector<Request> Requests() {
    std::mt19937 random(5);
    const auto draw = [&](uint32_t below) { return static_cast<uint32_t>(random() % below); };
    std::vector<Request> requests(24);
    for (size_t i = 0; i < requests.size(); ++i) {
      Request& r = requests[i];
      r.id = absl::StrCat(i);
      const uint32_t stem = 70 * draw(2);  // some begin alike
      for (uint32_t t = 0; t < stem; ++t) r.prompt.push_back(t % kVocab);
      for (uint32_t t = 1 + draw(90); t > 0; --t) r.prompt.push_back(draw(kVocab));
      r.max_tokens = 1 + draw(40);
      r.tail = draw(3);
      for (uint32_t t = draw(3); t > 0; --t) r.stop_tokens.push_back(draw(kVocab));
      const v1::AttentionMode modes[] = {
          v1::ATTENTION_MODE_DENSE, v1::ATTENTION_MODE_EXACT, v1::ATTENTION_MODE_LAGGED};
      r.sparse.set_mode(modes[draw(3)]);
      r.sparse.set_selector(v1::SELECTOR_CODE);
      r.sparse.set_budget(20 + draw(60));
      r.sparse.set_blocks(2 + draw(2));
      v1::SamplingParams& s = r.sampling;
      s.set_top_p(1);
      s.set_seed(draw(1000));
      s.set_temperature(static_cast<float>(draw(2)));
      if (draw(3) == 0) s.set_repetition_penalty(1.3f);
      if (draw(3) == 0) (*s.mutable_logit_bias())[draw(kVocab)] = 2.5f;
      if (draw(3) == 0) {
        s.set_min_tokens(1 + draw(r.max_tokens));
        for (const uint32_t id : r.stop_tokens) s.add_suppressed_ids(id);
      }
      if (draw(4) == 0) s.set_prompt_log_probs(true);
    }
    return requests;
  }

  std::vector<Reply> Run(uint32_t plans_in_flight) {
    std::vector<std::unique_ptr<Worker>> ranks;
    ranks.push_back(testing::MakeDeviceWorker());
    auto group = std::make_unique<WorkerGroup>(std::move(ranks));
    const absl::StatusOr<v1::InitReply> reply = group->Init(init_);
    EXPECT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->plans_in_flight(), 2u);
    SchedulerConfig config;
    config.blocks = reply->blocks();
    config.max_context = reply->model().max_context();
    config.vocab_size = kVocab;
    config.max_lanes = init_.max_lanes();
    config.max_step_tokens = init_.max_step_tokens();
    config.max_mixed_tokens = 30;
    config.plans_in_flight = plans_in_flight;
    prometheus::Registry registry;
    Metrics metrics(registry);
    std::vector<Request> requests = Requests();
    std::vector<Reply> replies(requests.size());
    Engine engine(config, std::move(group), metrics);
    for (size_t i = 0; i < requests.size(); ++i) {
      requests[i].on_event = [&reply = replies[i]](const TokenEvent& event) {
        if (event.token.has_value()) {
          reply.tokens.push_back(*event.token);
          reply.log_probs.push_back(event.log_prob);
        }
        if (event.prompt_log_probs.has_value()) {
          for (const float p : event.prompt_log_probs->log_probs()) {
            reply.prompt_log_probs.push_back(p);
          }
        }
        if (event.finished.has_value()) reply.finished = event.finished;
      };
      EXPECT_TRUE(engine.Submit(std::move(requests[i])).ok());
    }
    engine.Drain(absl::InfiniteDuration());
    EXPECT_TRUE(engine.snapshot().healthy);
    return replies;
  }

  TinyModel tiny_;
  TempDir dir_;
  v1::InitRequest init_;
};

TEST_F(EngineDeviceTest, RepliesAreTheSameWithOneAndTwoPlansInFlight) {
  const std::vector<Reply> one = Run(1), two = Run(2);
  int stopped = 0;
  for (size_t i = 0; i < one.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(one[i].finished.has_value() && two[i].finished.has_value());
    EXPECT_EQ(two[i].tokens, one[i].tokens);
    EXPECT_EQ(two[i].log_probs, one[i].log_probs);
    EXPECT_EQ(two[i].prompt_log_probs, one[i].prompt_log_probs);
    EXPECT_EQ(two[i].finished->reason, one[i].finished->reason);
    EXPECT_EQ(two[i].finished->stop_token, one[i].finished->stop_token);
    const RequestUsage &a = one[i].finished->usage, &b = two[i].finished->usage;
    EXPECT_EQ(b.completion_tokens, a.completion_tokens);
    EXPECT_EQ(b.decode_steps, a.decode_steps);
    EXPECT_EQ(b.kv_read.SerializeAsString(), a.kv_read.SerializeAsString());
    stopped += one[i].finished->reason == FinishReason::kStop;
  }
  EXPECT_GT(stopped, 3) << "rows in flight behind a stop were part of it";
}

}  // namespace
}  // namespace asynctls
