// SPDX-License-Identifier: Apache-2.0
// The errors of the front end: an absl::Status whose payloads are the google.rpc details that every
// protocol can show in its own way (BadRequest, ErrorInfo, RetryInfo).
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace asynctls {

// ErrorInfo.domain of everything below.
inline constexpr char kErrorDomain[] = "asynctls";

// INVALID_ARGUMENT about one field: message and BadRequest. `message` is complete and names the
// field, its value and its limit.
absl::Status FieldError(const std::string& field, const std::string& message);

// As FieldError with the message "FIELD REST...".
template <typename... Rest>
absl::Status InvalidField(const std::string& field, const Rest&... rest) {
  return FieldError(field, absl::StrCat(field, rest...));
}

// `status` with ErrorInfo{reason}; UPPER_SNAKE_CASE.
absl::Status WithReason(absl::Status status, const std::string& reason);
// `status` with RetryInfo: worth trying again after that.
absl::Status WithRetry(absl::Status status, absl::Duration after);

// What the payloads say; empty or zero where there is none.
std::string ErrorField(const absl::Status& status);
std::string ErrorReason(const absl::Status& status);
absl::Duration RetryAfter(const absl::Status& status);

}  // namespace asynctls
