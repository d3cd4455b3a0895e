// SPDX-License-Identifier: Apache-2.0
#include "client/bench/runner.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

class RunnerTest : public ::testing::Test {
 protected:
  RunnerTest() {
    options_.target = absl::StrCat("127.0.0.1:", server_.server().grpc_port());
    workload_.vocab = kDemoVocab;
    workload_.prompt_tokens = *LengthSpec::Parse("5:40");
    workload_.max_tokens = *LengthSpec::Parse("10");
    workload_.seed = 3;
    workload_.base.mutable_sampling()->set_temperature(0);
  }

  // Runs and returns the requests per "kind outcome".
  std::map<std::string, uint64_t> Run() {
    stats_ = RunBenchmark(options_, *Workload::Make(workload_), recorder_, nullptr);
    report_ = recorder_.ToJson();
    std::map<std::string, uint64_t> rows;
    for (const Json& row : report_["outcomes"]) {
      rows[absl::StrCat(row["kind"].get<std::string>(), " ", row["outcome"].get<std::string>())] +=
          row["requests"].get<uint64_t>();
    }
    return rows;
  }
  static uint64_t Total(const std::map<std::string, uint64_t>& rows, const std::string& prefix) {
    uint64_t sum = 0;
    for (const auto& [name, count] : rows) sum += name.rfind(prefix, 0) == 0 ? count : 0;
    return sum;
  }
  // What the workload plans, per kind.
  std::map<Kind, uint64_t> Planned(uint64_t requests) {
    std::map<Kind, uint64_t> kinds;
    const Workload workload = *Workload::Make(workload_);
    for (uint64_t i = 0; i < requests; ++i) ++kinds[workload.Plan(i).kind];
    return kinds;
  }

  static TestServer::Options Steps(absl::Duration step_time) {
    TestServer::Options options = TestServer::Defaults();
    options.fake.step_time = step_time;
    return options;
  }
  TestServer server_{Steps(absl::Microseconds(200))};
  RunOptions options_;
  WorkloadOptions workload_;
  Recorder recorder_{GoodputLimits()};
  RunStats stats_;
  Json report_;
};

TEST_F(RunnerTest, ClosedLoopKeepsItsConcurrencyAndCountsEveryToken) {
  options_.concurrency = 4;
  options_.num_requests = 40;
  options_.connections = 2;
  const auto rows = Run();
  EXPECT_EQ(Total(rows, "plain "), 40u);
  EXPECT_EQ(recorder_.ended(), 40u);
  EXPECT_EQ(recorder_.failed(), 0u);
  const Json& latency = report_["latency"];
  EXPECT_EQ(latency["ttft"]["count"], 40);
  EXPECT_EQ(latency["itl"]["count"].get<uint64_t>() + 40, recorder_.tokens());
  EXPECT_GE(stats_.messages, 40u * 3);  // start, tokens, end; tokens may come together
  for (const Json& running : report_["series"]["running"]) EXPECT_LE(running.get<double>(), 4.001);
  EXPECT_GT(stats_.cpu_seconds, 0);
  EXPECT_GT(stats_.threads, 0);
  EXPECT_EQ(stats_.send_lateness.count(), 0u);
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(RunnerTest, EveryKindEndsInItsOwnRows) {
  options_.concurrency = 16;
  options_.num_requests = 200;
  options_.slow_delay = absl::Milliseconds(1);
  options_.deadline = absl::Milliseconds(1);
  workload_.cancel_fraction = 0.2;
  workload_.slow_fraction = 0.1;
  workload_.deadline_fraction = 0.1;
  workload_.malformed_fraction = 0.2;
  const auto rows = Run();
  uint64_t all = 0;
  for (const auto& [kind, count] : Planned(200)) {
    EXPECT_EQ(Total(rows, KindName(kind) + " "), count) << KindName(kind);
    all += count;
  }
  EXPECT_EQ(all, 200u);
  EXPECT_EQ(report_["unexpected"], 0) << report_["outcomes"].dump(1);
  EXPECT_EQ(rows.at("malformed invalid_argument"), Total(rows, "malformed "));
  EXPECT_GT(rows.at("cancel cancelled"), 0u);
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(RunnerTest, OpenLoopDoesNotWaitForReplies) {
  options_.rate = 2000;
  options_.num_requests = 60;
  workload_.max_tokens = *LengthSpec::Parse("200");  // 40 ms at least: longer than all arrivals
  const auto rows = Run();
  EXPECT_EQ(Total(rows, "plain "), 60u);
  EXPECT_EQ(stats_.send_lateness.count(), 60u);
  double most = 0;
  for (const Json& running : report_["series"]["running"]) {
    most = std::max(most, running.get<double>());
  }
  EXPECT_GT(most, 4);
}

TEST_F(RunnerTest, DurationEndsTheSendingAndWarmUpIsNotCounted) {
  options_.concurrency = 2;
  options_.duration = absl::Milliseconds(100);
  options_.warmup = 5;
  const auto rows = Run();
  EXPECT_GT(recorder_.ended(), 0u);
  EXPECT_EQ(Total(rows, ""), recorder_.ended());
  EXPECT_TRUE(server_.WaitIdle());
  // The server saw the warm-up too.
  const double started = server_.metrics().requests_started.Value();
  EXPECT_EQ(started, static_cast<double>(recorder_.ended()) + 5);
}

TEST_F(RunnerTest, AServerThatIsNotThereFailsEveryRequest) {
  options_.target = "127.0.0.1:1";
  options_.concurrency = 2;
  options_.num_requests = 6;
  const auto rows = Run();
  EXPECT_EQ(rows.at("plain unavailable"), 6u);
  EXPECT_EQ(recorder_.failed(), 6u);
}

TEST_F(RunnerTest, ATimeoutIsAFailure) {
  options_.concurrency = 2;
  options_.num_requests = 2;
  options_.timeout = absl::Milliseconds(20);
  workload_.max_tokens = *LengthSpec::Parse("50000");
  const auto rows = Run();
  EXPECT_EQ(rows.at("plain deadline_exceeded"), 2u);
  EXPECT_EQ(recorder_.failed(), 2u);
}

TEST_F(RunnerTest, AThousandStreamsNeedFewThreads) {
  options_.concurrency = 200;  // the test server's queue holds 256
  options_.num_requests = 1000;
  workload_.prompt_tokens = *LengthSpec::Parse("1");
  workload_.max_tokens = *LengthSpec::Parse("2");
  int before = 0;  // the server's threads are in this process too
  {
    RunOptions few = options_;
    few.concurrency = few.num_requests = 1;
    Recorder recorder{GoodputLimits()};
    before = RunBenchmark(few, *Workload::Make(workload_), recorder, nullptr).threads;
  }
  const auto rows = Run();
  EXPECT_EQ(Total(rows, "plain "), 1000u);
  EXPECT_EQ(recorder_.failed(), 0u) << report_["outcomes"].dump(1);
  EXPECT_LT(stats_.threads, before + 50);
}

}  // namespace
}  // namespace asynctls::testing
