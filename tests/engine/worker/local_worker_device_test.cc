// SPDX-License-Identifier: Apache-2.0
// A rank's thread between two sources: plans, and word from a device that a step is done. The
// device here says so when the test lets it.
#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>

#include "engine/worker/local_worker.h"
#include "tests/testing/device_ops.h"
#include "tests/testing/rank_driver.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

// What happens, in order, seen from any thread.
class Happenings {
 public:
  void Add(const std::string& what) {
    std::lock_guard lock(mu_);
    all_.push_back(what);
    cv_.notify_all();
  }
  std::vector<std::string> WaitFor(size_t count) {
    std::unique_lock lock(mu_);
    cv_.wait(lock, [&] { return all_.size() >= count; });
    return all_;
  }

 private:
  std::mutex mu_;
  std::condition_variable cv_;
  std::vector<std::string> all_;
};

class HeldOps : public testing::DeviceOps {
 public:
  HeldOps(Happenings& happenings, std::deque<const std::function<void()>*>& held)
      : happenings_(happenings), held_(held) {}
  void WhenDone(int, const std::function<void()>& f) {
    held_.push_back(&f);
    happenings_.Add("begun");
  }

 private:
  Happenings& happenings_;
  std::deque<const std::function<void()>*>& held_;
};
static_assert(Ops<HeldOps>);

class LocalWorkerDeviceTest : public ::testing::Test {
 protected:
  LocalWorkerDeviceTest() {
    tiny_.Write(dir_.path());
    v1::InitRequest request = InitFor(dir_.path());
    request.set_kv_bytes(uint64_t{4} << 20);
    request.set_dense_layers(2);
    worker_ = std::make_unique<LocalWorker<HeldOps>>(
        [this](const v1::InitRequest&) { return std::make_unique<HeldOps>(happenings_, held_); });
    const absl::StatusOr<v1::InitReply> reply = worker_->Init(request);
    EXPECT_TRUE(reply.ok()) << reply.status();
  }

  // Step 1 reads a prompt of 10, the others decode.
  void Submit(uint64_t step) {
    auto plan = std::make_shared<v1::StepPlan>();
    plan->set_step(step);
    v1::LaneWork* work = plan->add_work();
    if (step == 1) {
      v1::LaneStart* start = plan->add_starts();
      start->mutable_sampling()->set_top_p(1);
      *start->mutable_sparse() = Attend(v1::ATTENTION_MODE_DENSE);
      for (uint32_t i = 0; i < 10; ++i) work->add_tokens(i);
      work->add_new_blocks(0);
      work->set_count(10);
    } else {
      work->set_start(static_cast<uint32_t>(8 + step));
      work->set_count(1);
      work->set_decode(true);
    }
    work->set_sample(true);
    worker_->Submit(plan, [this](const absl::StatusOr<v1::StepResult>& result) {
      happenings_.Add(result.ok() ? absl::StrCat("done ", result->step()) : "failed");
    });
  }
  // The device says that its oldest step that it has not said so of is done.
  void Say() {
    (*held_.front())();
    held_.pop_front();
  }

  TinyModel tiny_;
  TempDir dir_;
  Happenings happenings_;
  std::deque<const std::function<void()>*> held_;  // of the worker's thread until "begun"
  std::unique_ptr<Worker> worker_;
};

using Seen = std::vector<std::string>;

TEST_F(LocalWorkerDeviceTest, BeginsAStepWhileTheDeviceIsAtAnother) {
  Submit(1);
  Submit(2);
  EXPECT_EQ(happenings_.WaitFor(2), Seen({"begun", "begun"}));
  Say();
  EXPECT_EQ(happenings_.WaitFor(3).back(), "done 1");
  Submit(3);
  EXPECT_EQ(happenings_.WaitFor(4).back(), "begun");
  Say();
  EXPECT_EQ(happenings_.WaitFor(5).back(), "done 2");
  worker_.reset();  // ends what is under way
  EXPECT_EQ(happenings_.WaitFor(6).back(), "done 3");
}

TEST_F(LocalWorkerDeviceTest, AThirdPlanWaitsForTheFirstStep) {
  for (uint64_t step = 1; step <= 3; ++step) Submit(step);
  EXPECT_EQ(happenings_.WaitFor(4), Seen({"begun", "begun", "done 1", "begun"}));
  Say();  // of the first: everybody knows
  Say();
  EXPECT_EQ(happenings_.WaitFor(5).back(), "done 2");
  Say();
  EXPECT_EQ(happenings_.WaitFor(6).back(), "done 3");
}

TEST_F(LocalWorkerDeviceTest, ABrokenPlanIsToldAfterWhatIsUnderWay) {
  Submit(1);
  Submit(7);  // of a position that is not next
  Submit(2);
  EXPECT_EQ(happenings_.WaitFor(4), Seen({"begun", "done 1", "failed", "failed"}));
}

}  // namespace
}  // namespace asynctls
