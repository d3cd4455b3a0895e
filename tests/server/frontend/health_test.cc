// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;

TEST(HealthMonitorTest, WhileTheModelLoads) {
  TestServer::Options options = TestServer::Defaults();
  options.open = false;
  TestServer server(options);
  const Health health = HealthMonitor(server.server().frontend(), absl::Seconds(1)).health();
  EXPECT_TRUE(health.live);
  EXPECT_FALSE(health.started);
  EXPECT_FALSE(health.ready);
  EXPECT_THAT(health.reason, HasSubstr("loading"));
}

TEST(HealthMonitorTest, AnIdleServerIsReadyUntilItDrains) {
  TestServer server;
  HealthMonitor monitor(server.server().frontend(), absl::Seconds(1));
  EXPECT_TRUE(monitor.Update().ready);
  EXPECT_TRUE(monitor.health().started);
  monitor.StartDraining();
  EXPECT_FALSE(monitor.Update().ready);
  EXPECT_TRUE(monitor.health().live);
  EXPECT_THAT(monitor.health().reason, HasSubstr("draining"));
}

TEST(HealthMonitorTest, WorkWithoutStepsIsNotReadyButLive) {
  TestServer::Options options = TestServer::Defaults();
  options.fake.step_time = absl::Milliseconds(300);
  TestServer server(options);
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, IdsRequest({1, 2}, 5));
  ASSERT_TRUE(server.WaitFor([](const Engine::Snapshot& s) { return s.running == 1; }));
  HealthMonitor monitor(server.server().frontend(), absl::Milliseconds(20));
  Health health = monitor.Update();
  while (health.ready) health = monitor.Update();
  EXPECT_TRUE(health.live);
  EXPECT_THAT(health.reason, HasSubstr("no step"));
  context.TryCancel();
  v1::GenerateResponse message;
  while (reader->Read(&message)) continue;
  reader->Finish();
}

}  // namespace
}  // namespace asynctls::testing
