// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/errors.h"

#include <gtest/gtest.h>

namespace asynctls {
namespace {

TEST(ErrorsTest, AFieldErrorNamesItsFieldForPeopleAndPrograms) {
  const absl::Status status = InvalidField("sampling.n", " ", 99, " is outside 1 to 16");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "sampling.n 99 is outside 1 to 16");
  EXPECT_EQ(ErrorField(status), "sampling.n");
  EXPECT_EQ(ErrorReason(status), "INVALID_FIELD");
  EXPECT_EQ(RetryAfter(status), absl::ZeroDuration());
}

TEST(ErrorsTest, DetailsAddUp) {
  const absl::Status status =
      WithRetry(WithReason(absl::UnavailableError("loading"), "LOADING"), absl::Milliseconds(2500));
  EXPECT_EQ(status.message(), "loading");
  EXPECT_EQ(ErrorReason(status), "LOADING");
  EXPECT_EQ(RetryAfter(status), absl::Milliseconds(2500));
  EXPECT_EQ(ErrorField(status), "");
}

TEST(ErrorsTest, PlainStatusesHaveNoDetails) {
  const absl::Status status = absl::InternalError("x");
  EXPECT_EQ(ErrorField(status), "");
  EXPECT_EQ(ErrorReason(status), "");
  EXPECT_EQ(RetryAfter(status), absl::ZeroDuration());
}

}  // namespace
}  // namespace asynctls
