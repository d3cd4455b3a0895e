// SPDX-License-Identifier: Apache-2.0
#include "server/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "server/frontend/errors.h"
#include "tests/testing/http_client.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;

TEST(ServerTest, EveryAddressThatCannotBeBoundIsNamed) {
  TestServer first;
  const std::string taken = absl::StrCat("127.0.0.1:", first.server().grpc_port());
  prometheus::Registry registry;
  Metrics metrics(registry);
  v1::ServerConfig config = TestServer::Defaults().config;
  config.set_listen(taken);
  const auto grpc = Server::Start(config, metrics, std::make_shared<prometheus::Registry>());
  EXPECT_EQ(grpc.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(grpc.status().message()), HasSubstr(taken));
  config.set_listen("127.0.0.1:0");
  config.set_metrics_listen(taken);
  const auto listener = Server::Start(config, metrics, std::make_shared<prometheus::Registry>());
  EXPECT_EQ(listener.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(listener.status().message()), HasSubstr(taken));
  config.set_metrics_listen("none");
  config.set_http_listen(taken);
  const auto http = Server::Start(config, metrics, std::make_shared<prometheus::Registry>());
  EXPECT_EQ(http.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(http.status().message()), HasSubstr(taken));
}

TEST(ServerTest, TheGrpcPortTellsWhereHttpIs) {
  TestServer::Options options = TestServer::Defaults();
  EXPECT_EQ(TestServer(options).server().http_port(), 0);  // off by default
  options.config.set_http_listen("127.0.0.1:0");
  TestServer server(options);
  const HttpReply reply = Fetch(server.server().grpc_port(), "GET", "/health");
  EXPECT_EQ(reply.status, 426);
  EXPECT_THAT(reply.body,
              HasSubstr(absl::StrCat("HTTP is served on 127.0.0.1:", server.server().http_port())));
}

class DrainTest : public ::testing::Test {
 protected:
  static TestServer::Options Options() {
    TestServer::Options options = TestServer::Defaults();
    options.fake.step_time = absl::Milliseconds(1);
    return options;
  }

  // Begins a request and waits for its first token.
  void Begin(uint32_t tokens) {
    reader_ = server_.stub().Generate(&context_, IdsRequest({1, 2, 3}, tokens));
    v1::GenerateResponse message;
    while (out_.ids.empty() && reader_->Read(&message)) out_.Take(message);
  }
  void ReadOn() {
    v1::GenerateResponse message;
    while (reader_->Read(&message)) out_.Take(message);
    out_.status = reader_->Finish();
  }

  TestServer server_{Options()};
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
  Outcome out_;
};

TEST_F(DrainTest, RunningStreamsEndWellAndNewOnesAreRefused) {
  Begin(300);
  std::thread drain([&] { server_.server().Drain(absl::Seconds(60)); });
  Outcome refused;  // at the latest after a moment; those admitted before that end well
  do {
    refused = server_.Generate(IdsRequest({7}, 1));
  } while (refused.status.ok());
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  ReadOn();
  drain.join();
  EXPECT_TRUE(out_.status.ok()) << out_.status.error_message();
  EXPECT_EQ(out_.ids.size(), 300u);
  EXPECT_EQ(out_.finished.size(), 1u);
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(DrainTest, WhatIsLeftAtTheLimitEndsWithUnavailable) {
  Begin(50000);
  std::thread drain([&] { server_.server().Drain(absl::Milliseconds(20)); });
  ReadOn();
  drain.join();
  EXPECT_EQ(out_.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(out_.finished.empty());
  EXPECT_TRUE(server_.WaitIdle());
}

}  // namespace
}  // namespace asynctls::testing
