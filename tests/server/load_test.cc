// SPDX-License-Identifier: Apache-2.0
// Many streams with cancels: every request has exactly one end, on both sides, and no block stays.
#include <gtest/gtest.h>

#include "tests/testing/load.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

TEST(LoadTest, EveryRequestEndsOnceAndNothingLeaks) {
  TestServer::Options options = TestServer::Defaults();
  options.fake.blocks = 400;  // less than all streams together want
  options.fake.step_time = absl::Microseconds(300);
  TestServer server(options);
  LoadOptions load;
  load.duration = absl::Seconds(3);
  LoadCounts counts;
  RunLoad(server.stub(), load, counts);
  EXPECT_EQ(counts.other, 0);
  EXPECT_EQ(counts.ended(), counts.begun);
  EXPECT_GT(counts.finished, 0);
  EXPECT_GT(counts.cancelled, 0);
  ASSERT_TRUE(server.WaitIdle());
  server.server().Drain(absl::Seconds(10));
  EXPECT_EQ(server.engine().snapshot().blocks_used, 0);
  double ended = 0;
  for (const prometheus::Counter* counter : server.metrics().requests_finished) {
    ended += counter->Value();
  }
  // A call cancelled before it reached the server leaves no record there.
  EXPECT_LE(ended, static_cast<double>(counts.begun));
  EXPECT_GE(ended, static_cast<double>(counts.finished + counts.outrun));
  EXPECT_EQ(server.metrics().requests_started.Value(), ended);
}

}  // namespace
}  // namespace asynctls::testing
