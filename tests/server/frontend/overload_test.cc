// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/overload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/frontend/errors.h"

namespace asynctls {
namespace {

using ::testing::HasSubstr;

QueueLoad Load(uint64_t requests, uint64_t bytes, uint64_t tokens) {
  return {requests, 10, bytes, 1000, tokens, 100};
}

TEST(OverloadTest, TheFullestMeasureCounts) {
  EXPECT_EQ(OverloadLevel(Load(0, 0, 0)), 0u);
  EXPECT_EQ(OverloadLevel(Load(4, 499, 49)), 0u);
  EXPECT_EQ(OverloadLevel(Load(5, 0, 0)), 1u);
  EXPECT_EQ(OverloadLevel(Load(0, 500, 0)), 1u);
  EXPECT_EQ(OverloadLevel(Load(0, 0, 50)), 1u);
  EXPECT_EQ(OverloadLevel(Load(10, 0, 0)), 2u);
  EXPECT_EQ(OverloadLevel(Load(0, 1000, 0)), 2u);
  EXPECT_EQ(OverloadLevel(Load(0, 0, 100)), 2u);
}

TEST(OverloadTest, ABusyQueueTakesNoLowPriorities) {
  EXPECT_TRUE(CheckOverload(Load(4, 0, 0), 10, -1).ok());
  EXPECT_TRUE(CheckOverload(Load(5, 0, 0), 10, 0).ok());
  const absl::Status low = CheckOverload(Load(5, 0, 0), 10, -1);
  EXPECT_EQ(low.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(low), "PRIORITY_TOO_LOW");
  EXPECT_GT(RetryAfter(low), absl::ZeroDuration());
}

TEST(OverloadTest, AFullQueueTakesNobody) {
  const absl::Status full = CheckOverload(Load(10, 0, 0), 10, 100);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(full), "QUEUE_FULL");
  EXPECT_GT(RetryAfter(full), absl::ZeroDuration());
  EXPECT_THAT(std::string(full.message()), HasSubstr("10 of 10 requests"));
}

TEST(OverloadTest, APromptThatDoesNotFitIsRefused) {
  EXPECT_TRUE(CheckOverload(Load(0, 400, 0), 600, 0).ok());
  EXPECT_EQ(ErrorReason(CheckOverload(Load(0, 400, 0), 601, 0)), "QUEUE_FULL");
}

}  // namespace
}  // namespace asynctls
