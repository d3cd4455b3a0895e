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

TEST(ErrorsTest, WhatIsNotSupportedIsNamed) {
  const absl::Status status = UnsupportedField("mm_inputs");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(status.message(), "mm_inputs is not supported by this server");
  EXPECT_EQ(ErrorReason(status), "UNSUPPORTED_FIELD");
}

TEST(ErrorsTest, DetailsAddUp) {
  const absl::Status status =
      WithRetry(WithReason(absl::UnavailableError("loading"), "LOADING"), absl::Milliseconds(2500));
  EXPECT_EQ(status.message(), "loading");
  EXPECT_EQ(ErrorReason(status), "LOADING");
  EXPECT_EQ(RetryAfter(status), absl::Milliseconds(2500));
  EXPECT_EQ(ErrorField(status), "");
}

TEST(ErrorsTest, FieldsAreRenamedInMessageAndDetails) {
  const std::pair<absl::string_view, absl::string_view> names[] = {{"sampling.", "params."},
                                                                   {"token_ids.ids", "ids"}};
  const absl::Status status =
      RenameFields(FieldError("token_ids.ids", "token_ids.ids[3] is 9; see sampling.n"), names);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "ids[3] is 9; see params.n");
  EXPECT_EQ(ErrorField(status), "ids");
  EXPECT_EQ(ErrorReason(status), "INVALID_FIELD");
  // What names no field is left alone, whatever its text.
  const absl::Status other = WithReason(absl::NotFoundError("sampling.n"), "MODEL_NOT_FOUND");
  EXPECT_EQ(RenameFields(other, names), other);
}

TEST(ErrorsTest, PlainStatusesHaveNoDetails) {
  const absl::Status status = absl::InternalError("x");
  EXPECT_EQ(ErrorField(status), "");
  EXPECT_EQ(ErrorReason(status), "");
  EXPECT_EQ(RetryAfter(status), absl::ZeroDuration());
}

}  // namespace
}  // namespace asynctls
