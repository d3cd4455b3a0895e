// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/open_calls.h"

#include <gtest/gtest.h>

#include <optional>
#include <thread>

namespace asynctls {
namespace {

TEST(OpenCallsTest, ACallIsUnderWayUntilTheLastTicketIsGone) {
  OpenCalls calls;
  EXPECT_TRUE(calls.WaitUntilNone(absl::ZeroDuration()));
  OpenCalls::Ticket first = calls.Enter(), copy = first, second = calls.Enter();
  first = nullptr;
  second = nullptr;
  EXPECT_FALSE(calls.WaitUntilNone(absl::ZeroDuration()));
  copy = nullptr;
  EXPECT_TRUE(calls.WaitUntilNone(absl::ZeroDuration()));
}

TEST(OpenCallsTest, WhoWaitsIsWoken) {
  OpenCalls calls;
  OpenCalls::Ticket ticket = calls.Enter();
  std::thread last([&] { ticket = nullptr; });
  EXPECT_TRUE(calls.WaitUntilNone(absl::Minutes(5)));
  last.join();
}

TEST(OpenCallsTest, ATicketMayOutliveTheCount) {
  std::optional<OpenCalls> calls(std::in_place);
  OpenCalls::Ticket ticket = calls->Enter();
  calls.reset();
  ticket = nullptr;
  EXPECT_EQ(ticket.use_count(), 0);
}

}  // namespace
}  // namespace asynctls
