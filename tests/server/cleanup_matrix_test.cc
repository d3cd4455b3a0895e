// SPDX-License-Identifier: Apache-2.0
// Every way a request can be broken off, in every phase: its blocks are free within two steps and
// there is exactly one terminal record of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "spdlog/sinks/ostream_sink.h"
#include "tests/testing/http2_client.h"
#include "tests/testing/http_client.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

enum class Phase { kQueue, kPrefill, kDecode, kStreaming };
enum class Ending { kCancel, kDeadline, kAbort, kCrash, kSlowReader, kDrain, kHttpLeaves };
using Case = std::tuple<Ending, Phase, uint32_t>;  // and how many plans may be in flight

constexpr absl::Duration kStep = absl::Milliseconds(10);

// What the log says while this lives.
class LogCapture {
 public:
  LogCapture() : old_(spdlog::default_logger()) {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "capture", std::make_shared<spdlog::sinks::ostream_sink_mt>(text_)));
  }
  ~LogCapture() { spdlog::set_default_logger(old_); }
  int TerminalRecords(const std::string& id) const {
    int count = 0;
    for (const auto& line : absl::StrSplit(text_.str(), '\n')) {
      count += absl::StrContains(line, absl::StrCat("id=\"", id, "\"")) &&
               absl::StrContains(line, " end=");
    }
    return count;
  }

 private:
  std::ostringstream text_;
  const std::shared_ptr<spdlog::logger> old_;
};

class CleanupMatrixTest : public ::testing::TestWithParam<Case> {
 protected:
  TestServer::Options Options() const {
    TestServer::Options options = TestServer::Defaults();
    options.fake.step_time = kStep;
    options.fake.plans_in_flight = std::get<2>(GetParam());
    options.config.set_http_listen("127.0.0.1:0");
    options.config.set_max_sequences(1);
    options.config.set_max_step_tokens(256);
    return options;
  }

  // The victim's call, by hand. In the phase kStreaming, and as a slow reader, the client lets the
  // server send next to nothing.
  void Begin(Phase phase, Ending ending) {
    v1::GenerateRequest request =
        IdsRequest(std::vector<uint32_t>(phase == Phase::kPrefill ? 30000 : 10, 1), tokens_);
    request.set_request_id("victim");
    if (ending == Ending::kHttpLeaves) return BeginOverHttp(request, phase);
    const bool narrow = phase == Phase::kStreaming || ending == Ending::kSlowReader;
    client_ = std::make_unique<Http2Client>(server_.server().grpc_port());
    client_->Greet(narrow ? 64 : 1 << 20);
    Http2Client::Headers headers = Http2Client::Call("/asynctls.v1.GenerationService/Generate");
    if (ending == Ending::kDeadline) headers.push_back({"grpc-timeout", "150m"});
    began_ = absl::Now();
    client_->SendHeaders(1, headers);
    client_->SendMessage(1, request);
  }
  void BeginOverHttp(const v1::GenerateRequest& request, Phase phase) {
    const Json body = {{"prompt", std::vector<uint32_t>(request.token_ids().ids_size(), 1)},
                       {"max_tokens", request.stopping().max_tokens()},
                       {"temperature", 0},
                       {"request_id", request.request_id()},
                       {"stream", phase == Phase::kStreaming}};
    http_client_ = std::make_unique<HttpClient>(server_.server().http_port(), 4096);
    http_client_->SendRequest("POST", "/v1/completions", body.dump());
  }
  // Until the victim is where the case wants it.
  void WaitForPhase(Phase phase) {
    const auto reached = [&](const Engine::Snapshot& s) {
      switch (phase) {
        case Phase::kQueue:
          return s.waiting == 1 && s.running == 1;
        case Phase::kPrefill:
          return s.running == 1 && s.blocks_used > 8;
        case Phase::kDecode:
        case Phase::kStreaming:
          return s.generation_tokens >= 3;
      }
      return false;
    };
    ASSERT_TRUE(server_.WaitFor(reached));
  }
  void Abort() {
    grpc::ClientContext context;
    v1::AbortRequest request;
    request.add_request_ids("victim");
    v1::AbortResponse response;
    EXPECT_TRUE(server_.stub().Abort(&context, request, &response).ok());
  }
  void End(Ending ending) {
    switch (ending) {
      case Ending::kCancel:
        client_->SendFrame(Http2Client::kReset, 0, 1, Http2Client::Big32(8));
        return;
      case Ending::kDeadline:
        absl::SleepFor(began_ + absl::Milliseconds(150) - absl::Now());
        return;
      case Ending::kAbort:
        return Abort();
      case Ending::kCrash:
        return client_->Crash();
      case Ending::kHttpLeaves:
        return http_client_->Close();
      case Ending::kSlowReader:  // which does nothing; the request comes to its end
        return;
      case Ending::kDrain:
        drain_ = std::thread([this] { server_.server().Drain(absl::ZeroDuration()); });
        return;
    }
  }

  TestServer server_{Options()};
  LogCapture log_;
  uint32_t tokens_ = 20000;
  absl::Time began_;
  std::unique_ptr<Http2Client> client_;
  std::unique_ptr<HttpClient> http_client_;
  std::thread drain_;
};

TEST_P(CleanupMatrixTest, BlocksAreFreeAndTheEndIsToldOnce) {
  const auto [ending, phase, plans] = GetParam();
  if (ending == Ending::kSlowReader) tokens_ = 20;
  grpc::ClientContext blocker_context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> blocker;
  v1::GenerateResponse message;
  if (phase == Phase::kQueue) {
    blocker = server_.stub().Generate(&blocker_context, IdsRequest({1, 2, 3}, 20000));
    ASSERT_TRUE(blocker->Read(&message));
    ASSERT_TRUE(server_.WaitFor([](const Engine::Snapshot& s) { return s.running == 1; }));
  }
  Begin(phase, ending);
  WaitForPhase(phase);
  const int64_t steps = server_.engine().snapshot().steps;
  End(ending);
  if (blocker != nullptr && ending == Ending::kSlowReader) blocker_context.TryCancel();
  const int64_t ended_at = ending == Ending::kDeadline ? server_.engine().snapshot().steps : steps;
  if (phase == Phase::kQueue && ending != Ending::kSlowReader) {
    ASSERT_TRUE(server_.WaitFor([](const Engine::Snapshot& s) { return s.waiting == 0; }));
  } else {
    ASSERT_TRUE(server_.WaitFor([](const Engine::Snapshot& s) { return s.blocks_used == 0; }));
  }
  // So many steps are in flight when the end is asked for, one may begin before it is heard.
  if (ending != Ending::kSlowReader) {
    EXPECT_LE(server_.engine().snapshot().steps - ended_at, plans + 1 + 1);
  }
  if (blocker != nullptr) {
    blocker_context.TryCancel();
    while (blocker->Read(&message)) continue;
    blocker->Finish();
  }
  EXPECT_TRUE(server_.WaitIdle());
  if (client_ != nullptr) client_->Crash();  // whatever was not read
  if (drain_.joinable()) drain_.join();
  for (int i = 0; i < 10000 && log_.TerminalRecords("victim") == 0; ++i) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(log_.TerminalRecords("victim"), 1);
  const Engine::Snapshot end = server_.engine().snapshot();
  EXPECT_EQ(end.blocks_used, 0);
  EXPECT_EQ(end.running + end.waiting, 0);
}

std::string CaseName(const ::testing::TestParamInfo<Case>& info) {
  const char* endings[] = {
      "Cancel", "Deadline", "Abort", "Crash", "SlowReader", "Drain", "HttpLeaves"};
  const char* phases[] = {"InTheQueue", "InPrefill", "InDecode", "WhileStreaming"};
  return std::string(endings[static_cast<int>(std::get<0>(info.param))]) +
         phases[static_cast<int>(std::get<1>(info.param))] +
         (std::get<2>(info.param) == 1 ? "" : "WithTwoInFlight");
}

INSTANTIATE_TEST_SUITE_P(All,
                         CleanupMatrixTest,
                         ::testing::Combine(::testing::Values(Ending::kCancel,
                                                              Ending::kDeadline,
                                                              Ending::kAbort,
                                                              Ending::kCrash,
                                                              Ending::kSlowReader,
                                                              Ending::kDrain,
                                                              Ending::kHttpLeaves),
                                            ::testing::Values(Phase::kQueue,
                                                              Phase::kPrefill,
                                                              Phase::kDecode,
                                                              Phase::kStreaming),
                                            ::testing::Values(1u, 2u)),
                         CaseName);

}  // namespace
}  // namespace asynctls::testing
