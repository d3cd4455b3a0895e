// SPDX-License-Identifier: Apache-2.0
#include "client/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/enum_names.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;

TEST(ClientTest, GeneratesAndAsksForTheModel) {
  TestServer server;
  Client client(absl::StrCat("127.0.0.1:", server.server().grpc_port()));
  int events = 0;
  const auto reply =
      client.Generate(IdsRequest({1, 2}, 5), [&](const v1::GenerateResponse&) { ++events; });
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text(), *server.tokenizer().Decode(ExpectedReply({1, 2}, 5, kDemoVocab), true));
  EXPECT_EQ(reply->finished().usage().completion_tokens(), 5u);
  EXPECT_LE(reply->first_token, reply->total);
  EXPECT_GE(events, 3);
  EXPECT_EQ(client.GetModelInfo()->model().name(), "fake");
}

TEST(ClientTest, ErrorsKeepTheirCode) {
  TestServer::Options options = TestServer::Defaults();
  options.fake.step_time = absl::Milliseconds(2);
  TestServer server(options);
  Client client(absl::StrCat("127.0.0.1:", server.server().grpc_port()));
  const auto ignore = [](const v1::GenerateResponse&) {};
  EXPECT_EQ(client.Generate({}, ignore).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(client.Generate(IdsRequest({1}, 50000), ignore, {absl::Now() + absl::Milliseconds(50)})
                .status()
                .code(),
            absl::StatusCode::kDeadlineExceeded);
  Client nobody("127.0.0.1:1");
  EXPECT_EQ(nobody.GetModelInfo().status().code(), absl::StatusCode::kUnavailable);
}

TEST(ClientTest, ACancellerEndsTheCallBeforeAndWhileItRuns) {
  TestServer::Options options = TestServer::Defaults();
  options.fake.step_time = absl::Milliseconds(2);
  TestServer server(options);
  Client client(absl::StrCat("127.0.0.1:", server.server().grpc_port()));
  int deltas = 0;
  Canceller running;
  const auto cancel_at_third = [&](const v1::GenerateResponse& event) {
    if (event.has_delta() && ++deltas == 3) running.Cancel();
  };
  CallOptions call;
  call.canceller = &running;
  EXPECT_EQ(client.Generate(IdsRequest({1}, 50000), cancel_at_third, call).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_GE(deltas, 3);
  Canceller early;
  early.Cancel();
  call.canceller = &early;
  EXPECT_EQ(client
                .Generate(
                    IdsRequest({1}, 50000), [](const auto&) {}, call)
                .status()
                .code(),
            absl::StatusCode::kCancelled);
  running.Cancel();  // after the call: nothing to do
  EXPECT_TRUE(server.WaitIdle());
}

TEST(NamesTest, AreShortAndLowerCase) {
  EXPECT_EQ(ReasonName(v1::FINISH_REASON_LENGTH), "length");
  EXPECT_EQ(ModeName(v1::ATTENTION_MODE_LAGGED), "lagged");
}

TEST(ParseMessagesTest, NamesOriginAndMessage) {
  const auto good = ParseMessages(Json::parse(R"([{"role":"user","content":"q"}])"), "f");
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(good->messages(0).content(), "q");
  for (const char* bad : {"{}", "[]", "[1]", R"([{"role":"user","content":1}])"}) {
    const auto parsed = ParseMessages(Json::parse(bad), "file:3");
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("file:3: "));
  }
}

TEST(KvReadFractionTest, IsOneWhereNothingWasRead) {
  v1::KvRead read;
  EXPECT_DOUBLE_EQ(KvReadFraction(read), 1);
  read.set_bytes(25);
  read.set_dense_bytes(100);
  EXPECT_DOUBLE_EQ(KvReadFraction(read), 0.25);
}

}  // namespace
}  // namespace asynctls::testing
