// SPDX-License-Identifier: Apache-2.0
// The front end without a protocol: requests in, asynctls.v1 messages out.
#include "server/frontend/frontend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <map>

#include "server/frontend/errors.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

// Keeps everything; every write is done at once.
class Recorder final : public ResponseWriter {
 public:
  bool Write(v1::GenerateResponse& response) override {
    std::lock_guard lock(mu_);
    messages.push_back(response);
    return true;
  }
  void Finish(const absl::Status& status) override {
    std::lock_guard lock(mu_);
    end = status;
    ended_.notify_all();
  }
  void Wait() {
    std::unique_lock lock(mu_);
    ended_.wait(lock, [this] { return end.has_value(); });
  }

  std::vector<v1::GenerateResponse> messages;
  std::optional<absl::Status> end;

 private:
  std::mutex mu_;
  std::condition_variable ended_;
};

class FrontendTest : public ::testing::Test {
 protected:
  std::shared_ptr<Recorder> Run(const v1::GenerateRequest& request, CallInfo call = {}) {
    auto recorder = std::make_shared<Recorder>();
    server_.server().frontend().Generate(
        std::make_shared<v1::GenerateRequest>(request), call, recorder);
    recorder->Wait();
    return recorder;
  }

  TestServer server_;
};

TEST_F(FrontendTest, ARequestIsAnsweredInOrderAndEndsOnce) {
  const auto out = Run(IdsRequest({1, 2, 3}, 5));
  EXPECT_TRUE(out->end->ok()) << *out->end;
  ASSERT_GE(out->messages.size(), 3u);
  EXPECT_TRUE(out->messages.front().has_started());
  EXPECT_TRUE(out->messages.back().has_finished());
}

TEST_F(FrontendTest, EachOfNSequencesHasItsTokensAndItsEnd) {
  v1::GenerateRequest request = IdsRequest({1, 2, 3}, 40);
  request.mutable_sampling()->set_n(3);
  const auto out = Run(request);
  ASSERT_TRUE(out->end->ok()) << *out->end;
  std::map<uint32_t, std::vector<uint32_t>> ids;
  std::map<uint32_t, v1::Finished> finished;
  for (const v1::GenerateResponse& message : out->messages) {
    if (message.has_delta()) {
      EXPECT_EQ(finished.count(message.delta().index()), 0u) << "a delta after its end";
      auto& into = ids[message.delta().index()];
      into.insert(
          into.end(), message.delta().token_ids().begin(), message.delta().token_ids().end());
    }
    if (message.has_finished()) {
      EXPECT_TRUE(finished.emplace(message.finished().index(), message.finished()).second);
    }
  }
  ASSERT_EQ(finished.size(), 3u);
  const std::vector<uint32_t> expected = ExpectedReply({1, 2, 3}, 40, kDemoVocab);
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_THAT(ids[i], ElementsAreArray(expected)) << i;
    EXPECT_EQ(finished[i].usage().completion_tokens(), 40u);
    EXPECT_EQ(finished[i].usage().prompt_tokens(), 3u);
  }
}

TEST_F(FrontendTest, TheDeadlineOfACallIsKept) {
  CallInfo call;
  call.deadline = absl::Now() - absl::Seconds(1);
  EXPECT_EQ(Run(IdsRequest({1}, 1000), call)->end->code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(FrontendTest, ErrorsSayWhichFieldAndWhy) {
  v1::GenerateRequest request = IdsRequest({1}, 1);
  request.mutable_sampling()->set_n(1000000000);
  const absl::Status status = *Run(request)->end;
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ErrorField(status), "sampling.n");
  EXPECT_THAT(std::string(status.message()), HasSubstr("1 to 16"));
}

TEST_F(FrontendTest, AbortEndsEverySequence) {
  v1::GenerateRequest request = IdsRequest({1}, 30000);
  request.set_request_id("long");
  request.mutable_sampling()->set_n(2);
  auto recorder = std::make_shared<Recorder>();
  server_.server().frontend().Generate(
      std::make_shared<v1::GenerateRequest>(request), CallInfo(), recorder);
  ASSERT_TRUE(server_.WaitFor([](const Engine::Snapshot& s) { return s.running == 2; }));
  server_.server().frontend().Abort("long");
  recorder->Wait();
  EXPECT_TRUE(recorder->end->ok());
  int aborted = 0;
  for (const auto& message : recorder->messages) {
    aborted += message.finished().reason() == v1::FINISH_REASON_ABORTED;
  }
  EXPECT_EQ(aborted, 2);
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(FrontendTest, TokensSentAreTokensBilled) {
  uint64_t billed = 0;
  for (uint32_t tokens : {1, 7, 100}) {
    const auto out = Run(IdsRequest({tokens}, tokens));
    billed += out->messages.back().finished().usage().completion_tokens();
  }
  EXPECT_EQ(billed, 108u);
  EXPECT_EQ(server_.metrics().sent_tokens.Value(), 108.0);
}

TEST_F(FrontendTest, LoadTellsWhatIsThere) {
  const auto load = server_.server().frontend().Load();
  ASSERT_TRUE(load.ok());
  EXPECT_EQ(load->running_requests(), 0u);
  EXPECT_EQ(load->waiting_requests(), 0u);
  EXPECT_EQ(load->max_running_requests(), 32u);
  EXPECT_EQ(load->kv_tokens_total(), 1024u * 64);
  EXPECT_EQ(load->overload_level(), 0u);
}

TEST(FrontendQueueTest, WhatOnlyTheEngineCanRefuseIsExplainedToo) {
  TestServer::Options options = TestServer::Defaults();
  options.fake.step_time = absl::Milliseconds(20);
  options.config.set_max_sequences(1);
  options.config.set_max_waiting_requests(3);
  TestServer server(options);
  Frontend& frontend = server.server().frontend();
  std::vector<std::shared_ptr<Recorder>> long_ones;
  for (int i = 0; i < 2; ++i) {  // one runs, one waits
    v1::GenerateRequest request = IdsRequest({1}, 10000);
    request.set_request_id(absl::StrCat("long-", i));
    long_ones.push_back(std::make_shared<Recorder>());
    frontend.Generate(std::make_shared<v1::GenerateRequest>(request), CallInfo(), long_ones.back());
    ASSERT_TRUE(server.WaitFor(
        [&](const Engine::Snapshot& s) { return s.running == 1 && s.waiting == i; }));
  }
  v1::GenerateRequest three = IdsRequest({1}, 1);  // there is room for one, but not for three
  three.mutable_sampling()->set_n(3);
  auto recorder = std::make_shared<Recorder>();
  frontend.Generate(std::make_shared<v1::GenerateRequest>(three), CallInfo(), recorder);
  recorder->Wait();
  EXPECT_EQ(recorder->end->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(*recorder->end), "QUEUE_FULL");
  EXPECT_GT(RetryAfter(*recorder->end), absl::ZeroDuration());
  for (int i = 0; i < 2; ++i) frontend.Abort(absl::StrCat("long-", i));
  for (const auto& each : long_ones) each->Wait();
}

TEST(FrontendWhileLoadingTest, EverythingIsUnavailableAndWorthAnotherTry) {
  TestServer::Options options = TestServer::Defaults();
  options.open = false;
  TestServer server(options);
  Frontend& frontend = server.server().frontend();
  const auto check = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(ErrorReason(status), "LOADING");
    EXPECT_GT(RetryAfter(status), absl::ZeroDuration());
  };
  auto recorder = std::make_shared<Recorder>();
  frontend.Generate(
      std::make_shared<v1::GenerateRequest>(IdsRequest({1}, 1)), CallInfo(), recorder);
  recorder->Wait();
  check(*recorder->end);
  check(frontend.Load().status());
  check(frontend.ModelInfo().status());
  frontend.Tokenize(v1::TokenizeRequest(), [&](auto response) { check(response.status()); });
  frontend.Detokenize(v1::DetokenizeRequest(), [&](auto response) { check(response.status()); });
}

}  // namespace
}  // namespace asynctls::testing
