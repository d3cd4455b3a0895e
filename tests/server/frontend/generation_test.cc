// SPDX-License-Identifier: Apache-2.0
// Ends of streams in every phase a request can be in, and readers that do not read.
#include "server/frontend/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::ElementsAreArray;

enum class Phase { kAtOnce, kQueue, kPrefill, kDecode };
enum class Ending { kCancel, kDeadline, kAbort };
using Case = std::tuple<Phase, Ending>;

class EndingTest : public ::testing::TestWithParam<Case> {
 protected:
  static TestServer::Options Options() {
    TestServer::Options options = TestServer::Defaults();
    options.fake.step_time = absl::Milliseconds(3);
    options.config.set_max_sequences(1);
    return options;
  }

  void Abort(const std::string& id) {
    grpc::ClientContext context;
    v1::AbortRequest request;
    request.add_request_ids(id);
    v1::AbortResponse response;
    EXPECT_TRUE(server_.stub().Abort(&context, request, &response).ok());
  }

  TestServer server_{Options()};
};

TEST_P(EndingTest, FreesEverythingAndEndsTheCallOnce) {
  const auto [phase, ending] = GetParam();
  // Something that holds the only lane, so that the request below waits.
  grpc::ClientContext blocker_context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> blocker;
  v1::GenerateResponse message;
  if (phase == Phase::kQueue) {
    blocker = server_.stub().Generate(&blocker_context, IdsRequest({1, 2, 3}, 50000));
    ASSERT_TRUE(blocker->Read(&message));
  }
  const bool prefill = phase == Phase::kPrefill;
  v1::GenerateRequest request =
      IdsRequest(std::vector<uint32_t>(prefill ? 60000 : 10, 1), prefill ? 10 : 50000);
  request.set_request_id("victim");
  grpc::ClientContext context;
  if (ending == Ending::kDeadline) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(60));
  }
  auto reader = server_.stub().Generate(&context, request);
  Outcome out;
  const auto read = [&](auto until) {
    while (reader->Read(&message)) {
      out.Take(message);
      if (until(message)) return true;
    }
    return false;
  };
  switch (phase) {
    case Phase::kAtOnce:
      break;
    case Phase::kQueue:
      ASSERT_TRUE(read([](const auto& m) { return m.has_started(); }));
      // Told of its start, the blocker may be on its way out of the queue still.
      ASSERT_TRUE(server_.WaitFor([](const Engine::Snapshot& s) { return s.waiting == 1; }));
      break;
    case Phase::kPrefill:
      ASSERT_TRUE(read([](const auto& m) { return m.has_progress(); }));
      break;
    case Phase::kDecode:
      ASSERT_TRUE(read([](const auto& m) { return m.has_delta(); }));
      break;
  }
  if (ending == Ending::kCancel) context.TryCancel();
  if (ending == Ending::kAbort) {
    // An Abort that overtakes its request is ignored, as for any unknown id.
    if (phase == Phase::kAtOnce) {
      ASSERT_TRUE(read([](const auto& m) { return m.has_started(); }));
    }
    Abort("victim");
    Abort("victim");
  }
  read([](const auto&) { return false; });
  out.status = reader->Finish();

  switch (ending) {
    case Ending::kCancel:
      EXPECT_EQ(out.status.error_code(), grpc::StatusCode::CANCELLED);
      EXPECT_TRUE(out.finished.empty());
      break;
    case Ending::kDeadline:
      EXPECT_EQ(out.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
      EXPECT_TRUE(out.finished.empty());
      break;
    case Ending::kAbort:
      EXPECT_TRUE(out.status.ok()) << out.status.error_message();
      ASSERT_EQ(out.finished.size(), 1u);
      EXPECT_EQ(out.finished[0].reason(), v1::FINISH_REASON_ABORTED);
      EXPECT_EQ(out.finished[0].usage().completion_tokens(), out.ids.size());
      break;
  }
  if (blocker != nullptr) {
    blocker_context.TryCancel();
    while (blocker->Read(&message)) continue;
    EXPECT_EQ(blocker->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(server_.WaitIdle());
  EXPECT_EQ(server_.engine().snapshot().blocks_used, 0);
  EXPECT_TRUE(server_.Generate(IdsRequest({1}, 2)).status.ok());
}

INSTANTIATE_TEST_SUITE_P(
    All,
    EndingTest,
    ::testing::Combine(
        ::testing::Values(Phase::kAtOnce, Phase::kQueue, Phase::kPrefill, Phase::kDecode),
        ::testing::Values(Ending::kCancel, Ending::kDeadline, Ending::kAbort)));

TEST(SlowReaderTest, StallsNeitherTheEngineNorOthersAndLosesNothing) {
  TestServer server;
  v1::GenerateRequest request = IdsRequest({5, 6, 7}, 50000);
  request.mutable_response()->set_log_probs(true);
  // A client that takes 64 KiB ahead of its reader; left alone, gRPC lets the window grow.
  grpc::ChannelArguments narrow;
  narrow.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  narrow.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 65536);
  auto stub = v1::GenerationService::NewStub(
      grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server.server().grpc_port()),
                                grpc::InsecureChannelCredentials(),
                                narrow));
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, request);
  Outcome out;
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));  // and no more for now
  out.Take(message);
  EXPECT_TRUE(server.Generate(IdsRequest({9}, 100)).status.ok());
  ASSERT_TRUE(server.WaitIdle());  // every token is made before the second read
  EXPECT_EQ(server.engine().snapshot().blocks_used, 0);
  while (reader->Read(&message)) out.Take(message);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_THAT(out.ids, ElementsAreArray(ExpectedReply({5, 6, 7}, 50000, kDemoVocab)));
  EXPECT_EQ(out.text, *server.tokenizer().Decode(out.ids, true));
  EXPECT_EQ(out.finished.size(), 1u);
  EXPECT_LT(out.messages.size(), 25000u);  // what waited left together
}

TEST(SlowReaderTest, OneThatGoesAwayLeavesNothingBehind) {
  TestServer server;
  {
    v1::GenerateRequest request = IdsRequest({5, 6, 7}, 50000);
    grpc::ClientContext context;
    auto reader = server.stub().Generate(&context, request);
    v1::GenerateResponse message;
    ASSERT_TRUE(reader->Read(&message));
    context.TryCancel();
    while (reader->Read(&message)) continue;
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  ASSERT_TRUE(server.WaitIdle());
  EXPECT_EQ(server.engine().snapshot().blocks_used, 0);
}

}  // namespace
}  // namespace asynctls::testing
