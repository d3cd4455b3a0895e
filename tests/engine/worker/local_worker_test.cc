// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/local_worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "engine/worker/worker_group.h"
#include "kernels/ref/ref_ops.h"
#include "tests/testing/rank_driver.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Worker> MakeRefWorker() {
  return std::make_unique<LocalWorker<RefOps>>(
      [](const v1::InitRequest&) { return std::make_unique<RefOps>(); });
}

absl::StatusOr<v1::StepResult> RunStep(Worker& worker, const v1::StepPlan& plan) {
  std::promise<absl::StatusOr<v1::StepResult>> promise;
  worker.Submit(std::make_shared<v1::StepPlan>(plan),
                [&](absl::StatusOr<v1::StepResult> r) { promise.set_value(std::move(r)); });
  return promise.get_future().get();
}

// A sequence of 200 tokens, then steps that decode it sparsely.
v1::StepPlan PromptPlan() {
  v1::StepPlan plan;
  v1::LaneStart* start = plan.add_starts();
  start->mutable_sampling()->set_top_p(1);
  *start->mutable_sparse() = Attend(v1::ATTENTION_MODE_EXACT, 100, 3);
  v1::LaneWork* work = plan.add_work();
  for (uint32_t i = 0; i < 200; ++i) work->add_tokens(i * i % 67);
  for (uint32_t b = 0; b < 4; ++b) work->add_new_blocks(b);
  work->set_count(200);
  work->set_sample(true);
  return plan;
}
v1::StepPlan DecodePlan(uint32_t position) {
  v1::StepPlan plan;
  v1::LaneWork* work = plan.add_work();
  work->set_start(position);
  work->set_count(1);
  work->set_decode(true);
  work->set_sample(true);
  return plan;
}

class LocalWorkerTest : public ::testing::Test {
 protected:
  LocalWorkerTest() {
    tiny_.Write(dir_.path());
    request_ = InitFor(dir_.path());
    request_.set_kv_bytes(uint64_t{4} << 20);
    for (uint32_t i = 0; i < 1500; ++i) request_.add_calibration_tokens((i * 31 + i * i) % 67);
  }
  // Tokens of 10 steps, by a fresh worker.
  std::vector<uint32_t> Generate(const v1::InitRequest& request, v1::InitReply& reply) {
    const std::unique_ptr<Worker> worker = MakeRefWorker();
    absl::StatusOr<v1::InitReply> init = worker->Init(request);
    EXPECT_TRUE(init.ok()) << init.status();
    reply = *std::move(init);
    std::vector<uint32_t> tokens;
    for (uint32_t i = 0; i < 10; ++i) {
      absl::StatusOr<v1::StepResult> result =
          RunStep(*worker, i == 0 ? PromptPlan() : DecodePlan(199 + i));
      EXPECT_TRUE(result.ok()) << result.status();
      tokens.push_back(result->sampled(0).token());
    }
    return tokens;
  }

  TinyModel tiny_;
  TempDir dir_;
  v1::InitRequest request_;
};

TEST_F(LocalWorkerTest, CalibratesOnceAndReadsTheFileLater) {
  const std::string file = dir_.File("key_codes.safetensors");
  v1::InitReply first, second;
  const std::vector<uint32_t> tokens = Generate(request_, first);
  EXPECT_THAT(first.key_codes(), HasSubstr("computed at load, written to " + file));
  request_.clear_calibration_tokens();
  EXPECT_EQ(Generate(request_, second), tokens);
  EXPECT_EQ(second.key_codes(), file);
}

TEST_F(LocalWorkerTest, WithoutFileAndTextItSaysWhatToDo) {
  request_.clear_calibration_tokens();
  const std::unique_ptr<Worker> worker = MakeRefWorker();
  const absl::Status status = worker->Init(request_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("run `asynctls calibrate`"));
  EXPECT_EQ(RunStep(*worker, PromptPlan()).status(), status);
}

TEST_F(LocalWorkerTest, RefusesTheFileOfAnotherModel) {
  v1::InitReply reply;
  Generate(request_, reply);
  tiny_.tensors.clear();
  TinyModel other;
  other.config["rope_theta"] = 20000.0;
  other.Write(dir_.path());
  const absl::Status status = MakeRefWorker()->Init(request_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("key_codes.safetensors"));
}

TEST_F(LocalWorkerTest, SyntheticWeightsLeaveNoFile) {
  request_.set_weights(v1::WEIGHT_SOURCE_SYNTHETIC);
  v1::InitReply reply;
  Generate(request_, reply);
  EXPECT_THAT(reply.key_codes(), HasSubstr("kept in memory"));
  EXPECT_FALSE(std::filesystem::exists(dir_.File("key_codes.safetensors")));
}

TEST_F(LocalWorkerTest, NeedsInitFirstAndDiesOfABrokenPlan) {
  const std::unique_ptr<Worker> worker = MakeRefWorker();
  EXPECT_EQ(RunStep(*worker, PromptPlan()).status().code(), absl::StatusCode::kFailedPrecondition);
  request_.set_dense_layers(2);
  ASSERT_TRUE(worker->Init(request_).ok());
  ASSERT_TRUE(RunStep(*worker, PromptPlan()).ok());
  const absl::Status broken = RunStep(*worker, DecodePlan(7)).status();
  EXPECT_EQ(broken.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(broken.message()), HasSubstr("start is 7, its KV ends at 200"));
  EXPECT_EQ(RunStep(*worker, DecodePlan(200)).status(), broken);  // dead from then on
}

TEST_F(LocalWorkerTest, AnswersWhatWasSubmittedBeforeItEnds) {
  request_.set_dense_layers(2);
  std::unique_ptr<Worker> worker = MakeRefWorker();
  ASSERT_TRUE(worker->Init(request_).ok());
  int answered = 0;
  worker->Submit(std::make_shared<v1::StepPlan>(PromptPlan()),
                 [&](const absl::StatusOr<v1::StepResult>&) { ++answered; });
  worker->Submit(std::make_shared<v1::StepPlan>(DecodePlan(200)),
                 [&](const absl::StatusOr<v1::StepResult>&) { ++answered; });
  worker.reset();
  EXPECT_EQ(answered, 2);
}

TEST_F(LocalWorkerTest, AGroupOfTwoRanksGeneratesTheSameTokens) {
  v1::InitReply reply;
  const std::vector<uint32_t> one = Generate(request_, reply);  // writes the file both ranks slice
  std::vector<std::unique_ptr<Worker>> ranks;
  for (int i = 0; i < 2; ++i) ranks.push_back(MakeRefWorker());
  WorkerGroup group(std::move(ranks));
  request_.set_rendezvous(*GlooCommunicator::MakeRendezvous());
  absl::StatusOr<v1::InitReply> init = group.Init(request_);
  ASSERT_TRUE(init.ok()) << init.status();
  EXPECT_EQ(init->kv_bytes_per_token(), reply.kv_bytes_per_token());
  std::vector<uint32_t> tokens;
  uint64_t read = 0;
  for (uint32_t i = 0; i < 10; ++i) {
    std::promise<absl::StatusOr<v1::StepResult>> promise;
    v1::StepPlan plan = i == 0 ? PromptPlan() : DecodePlan(199 + i);
    plan.set_step(i);
    group.Submit(std::make_shared<v1::StepPlan>(plan),
                 [&](absl::StatusOr<v1::StepResult> r) { promise.set_value(std::move(r)); });
    absl::StatusOr<v1::StepResult> result = promise.get_future().get();
    ASSERT_TRUE(result.ok()) << result.status();
    tokens.push_back(result->sampled(0).token());
    if (i == 1) read = result->reads(0).read().tokens();
  }
  EXPECT_EQ(tokens[0], one[0]);
  EXPECT_EQ(read, 2u * 2 * 100);  // both ranks' heads
}

}  // namespace
}  // namespace asynctls
