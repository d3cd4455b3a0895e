// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/worker_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>

#include "tests/testing/fake_worker.h"

namespace asynctls {
namespace {

using testing::FakeOptions;
using testing::FakeWorker;
using ::testing::HasSubstr;

// A rank whose replies the test gives; acknowledges when told.
class ManualWorker : public Worker {
 public:
  absl::StatusOr<v1::InitReply> Init(const v1::InitRequest&) override { return init_reply; }
  void Submit(std::shared_ptr<const v1::StepPlan> plan, Done done) override {
    plans.push_back(std::move(plan));
    dones.push_back(std::move(done));
  }
  void Reply(size_t step, v1::StepResult result) {
    result.set_step(plans[step]->step());
    dones[step](std::move(result));
  }

  absl::StatusOr<v1::InitReply> init_reply = v1::InitReply();
  std::vector<std::shared_ptr<const v1::StepPlan>> plans;
  std::vector<Done> dones;
};

class WorkerGroupTest : public ::testing::Test {
 protected:
  void Make(int ranks) {
    std::vector<std::unique_ptr<Worker>> workers;
    for (int rank = 0; rank < ranks; ++rank) {
      auto worker = std::make_unique<ManualWorker>();
      ranks_.push_back(worker.get());
      workers.push_back(std::move(worker));
    }
    group_ = std::make_unique<WorkerGroup>(std::move(workers));
  }
  void Submit(uint64_t step) {
    auto plan = std::make_shared<v1::StepPlan>();
    plan->set_step(step);
    group_->Submit(plan, [this](absl::StatusOr<v1::StepResult> result) {
      results_.push_back(std::move(result));
    });
  }
  static v1::StepResult Result(uint32_t token, uint64_t tokens_read) {
    v1::StepResult result;
    result.add_sampled()->set_token(token);
    result.add_reads()->mutable_read()->set_tokens(tokens_read);
    result.mutable_reads(0)->mutable_read()->set_dense_bytes(10 * tokens_read);
    result.set_nan_heads(1);
    return result;
  }

  std::vector<ManualWorker*> ranks_;
  std::unique_ptr<WorkerGroup> group_;
  std::vector<absl::StatusOr<v1::StepResult>> results_;
};

TEST_F(WorkerGroupTest, CompletesWhenAllRanksHaveWithRankZerosTokensAndSummedReads) {
  Make(3);
  Submit(1);
  EXPECT_EQ(ranks_[0]->plans[0], ranks_[2]->plans[0]) << "one plan, shared";
  ranks_[2]->Reply(0, Result(102, 3));
  ranks_[0]->Reply(0, Result(100, 1));
  EXPECT_TRUE(results_.empty());
  ranks_[1]->Reply(0, Result(101, 2));
  ASSERT_EQ(results_.size(), 1);
  ASSERT_TRUE(results_[0].ok());
  EXPECT_EQ(results_[0]->sampled(0).token(), 100);
  EXPECT_EQ(results_[0]->reads(0).read().tokens(), 6);
  EXPECT_EQ(results_[0]->reads(0).read().dense_bytes(), 60);
  EXPECT_EQ(results_[0]->nan_heads(), 3);
}

TEST_F(WorkerGroupTest, OneFailureFailsTheGroupForGood) {
  Make(2);
  Submit(1);
  Submit(2);
  ranks_[1]->dones[0](absl::DataLossError("lost"));
  ASSERT_EQ(results_.size(), 1);
  EXPECT_TRUE(absl::IsUnavailable(results_[0].status()));
  EXPECT_EQ(results_[0].status().message(), "rank 1: lost");
  ranks_[0]->Reply(0, Result(1, 1));  // too late, and nobody is told twice
  EXPECT_EQ(results_.size(), 1);
  ranks_[0]->Reply(1, Result(1, 1));
  ranks_[1]->dones[1](absl::DataLossError("still lost"));
  EXPECT_EQ(results_.size(), 2);
  Submit(3);
  ASSERT_EQ(results_.size(), 3);
  EXPECT_EQ(results_[2].status().message(), "rank 1: lost");
  EXPECT_EQ(ranks_[0]->plans.size(), 2) << "nothing is sent any more";
}

TEST_F(WorkerGroupTest, AWrongAnswerIsAFailure) {
  Make(2);
  Submit(1);
  v1::StepResult wrong;
  wrong.set_step(7);
  ranks_[0]->dones[0](wrong);
  ASSERT_EQ(results_.size(), 1);
  EXPECT_THAT(std::string(results_[0].status().message()),
              HasSubstr("rank 0: answered step 7 instead of 1"));
}

TEST_F(WorkerGroupTest, DifferentReadsAreAFailure) {
  Make(2);
  Submit(1);
  ranks_[0]->Reply(0, Result(1, 1));
  ranks_[1]->Reply(0, {});
  ASSERT_EQ(results_.size(), 1);
  EXPECT_THAT(std::string(results_[0].status().message()), HasSubstr("rank 1"));
}

TEST_F(WorkerGroupTest, LateAcknowledgementsOutliveTheGroup) {
  Make(2);
  Submit(1);
  auto late = std::move(ranks_[0]->dones[0]);
  ranks_[1]->dones[0](absl::DataLossError("lost"));
  group_.reset();
  late(v1::StepResult());
  EXPECT_EQ(results_.size(), 1);
}

TEST_F(WorkerGroupTest, InitChecksThatRepliesAgreeAndAddsThemUp) {
  Make(2);
  for (int rank = 0; rank < 2; ++rank) {
    v1::InitReply& reply = *ranks_[rank]->init_reply;
    reply.set_blocks(100 - 10 * rank);
    reply.set_block_positions(64);
    reply.set_kv_bytes_per_token(512);
    reply.set_code_bytes_per_token(16);
    reply.add_memory()->set_what("weights");
  }
  const auto reply = group_->Init({});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->blocks(), 90);
  EXPECT_EQ(reply->kv_bytes_per_token(), 1024);
  EXPECT_EQ(reply->code_bytes_per_token(), 32);
  ASSERT_EQ(reply->memory_size(), 2);
  EXPECT_EQ(reply->memory(1).what(), "rank 1 weights");
  ranks_[1]->init_reply->mutable_model()->set_fingerprint("another");
  EXPECT_TRUE(absl::IsInternal(group_->Init({}).status()));
  ranks_[1]->init_reply = absl::NotFoundError("model.safetensors");
  const absl::Status failed = group_->Init({}).status();
  EXPECT_TRUE(absl::IsNotFound(failed));
  EXPECT_EQ(failed.message(), "rank 1: model.safetensors");
}

TEST(WorkerGroup, RanksAreNumberedAndMeetInInit) {
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<FakeWorker*> ranks;
  for (int rank = 0; rank < 3; ++rank) {
    auto worker = std::make_unique<FakeWorker>();
    ranks.push_back(worker.get());
    workers.push_back(std::move(worker));
  }
  WorkerGroup group(std::move(workers));
  v1::InitRequest request;
  request.set_rendezvous("/tmp/store");
  ASSERT_TRUE(group.Init(request).ok());
  EXPECT_EQ(group.ranks(), 3);
  for (uint32_t rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(ranks[rank]->init_request.rank(), rank);
    EXPECT_EQ(ranks[rank]->init_request.ranks(), 3);
    EXPECT_EQ(ranks[rank]->init_request.rendezvous(), "/tmp/store");
  }
}

// A rank whose Init returns only when the other's has begun: serial initialisation would hang.
class MeetingWorker : public FakeWorker {
 public:
  struct Place {
    std::mutex mu;
    std::condition_variable cv;
    int present = 0;
  };
  explicit MeetingWorker(Place& place) : place_(place) {}
  absl::StatusOr<v1::InitReply> Init(const v1::InitRequest& request) override {
    std::unique_lock lock(place_.mu);
    ++place_.present;
    place_.cv.notify_all();
    place_.cv.wait(lock, [this] { return place_.present == 2; });
    return FakeWorker::Init(request);
  }

 private:
  Place& place_;
};

TEST_F(WorkerGroupTest, BlockHeatIsTheMeanOfTheRanks) {
  Make(2);
  const auto with = [](std::string heat) {
    v1::StepResult result = Result(1, 1);
    result.mutable_reads(0)->set_block_heat(std::move(heat));
    return result;
  };
  Submit(1);
  ranks_[0]->Reply(0, with(std::string("\xff\x00\x02\x01", 4)));
  ranks_[1]->Reply(0, with(std::string("\xff\x00\x03\x00", 4)));
  ASSERT_EQ(results_.size(), 1u);
  ASSERT_TRUE(results_[0].ok()) << results_[0].status();
  EXPECT_EQ(results_[0]->reads(0).block_heat(), std::string("\xff\x00\x03\x01", 4));
  Submit(2);
  ranks_[0]->Reply(1, with("ab"));
  ranks_[1]->Reply(1, with("a"));
  EXPECT_THAT(std::string(results_[1].status().message()), HasSubstr("block heat"));
}

TEST(WorkerGroup, InitRunsAllRanksAtOnce) {
  MeetingWorker::Place place;
  std::vector<std::unique_ptr<Worker>> workers;
  for (int rank = 0; rank < 2; ++rank) workers.push_back(std::make_unique<MeetingWorker>(place));
  EXPECT_TRUE(WorkerGroup(std::move(workers)).Init({}).ok());
}

}  // namespace
}  // namespace asynctls
