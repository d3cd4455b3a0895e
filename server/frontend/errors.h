// SPDX-License-Identifier: Apache-2.0
// The errors of the front end: an absl::Status whose payloads are the google.rpc details that every
// protocol can show in its own way (BadRequest, ErrorInfo, RetryInfo).
#pragma once

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

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

// UNIMPLEMENTED, for what a protocol has and this server has not.
absl::Status UnsupportedField(const std::string& field);

// An INVALID_ARGUMENT in the words of another protocol: each pair's first name, a field of ours, is
// replaced by the second in the message and in BadRequest. Every other status as it is.
using FieldNames = absl::Span<const std::pair<absl::string_view, absl::string_view>>;
absl::Status RenameFields(const absl::Status& status, FieldNames names);

// `status` with ErrorInfo{reason}; UPPER_SNAKE_CASE.
absl::Status WithReason(absl::Status status, const std::string& reason);
// `status` with RetryInfo: worth trying again after that.
absl::Status WithRetry(absl::Status status, absl::Duration after);

// What the payloads say; empty or zero where there is none.
std::string ErrorField(const absl::Status& status);
std::string ErrorReason(const absl::Status& status);
absl::Duration RetryAfter(const absl::Status& status);

}  // namespace asynctls
