// SPDX-License-Identifier: Apache-2.0
// What the services learn of a call: seen through the log line of a request.
#include "server/grpc/grpc_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "spdlog/sinks/ostream_sink.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;

TEST(CallInfoFromTest, TakesProtocolAndTraceFromTheCall) {
  TestServer server;
  std::ostringstream log;
  const auto old = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  grpc::ClientContext context;
  context.AddMetadata("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
  EXPECT_TRUE(server.Generate(IdsRequest({1, 2}, 3), context).status.ok());
  spdlog::set_default_logger(old);
  EXPECT_THAT(log.str(), HasSubstr("protocol=grpc trace=4bf92f3577b34da6a3ce929d0e0e4736"));
  EXPECT_THAT(log.str(), HasSubstr("end=length"));
}

TEST(CallInfoFromTest, TakesTheDeadlineFromTheCall) {
  TestServer::Options options = TestServer::Defaults();
  options.fake.step_time = absl::Milliseconds(5);
  TestServer server(options);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  EXPECT_EQ(server.Generate(IdsRequest({1, 2}, 50000), context).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(server.WaitIdle());
}

}  // namespace
}  // namespace asynctls::testing
