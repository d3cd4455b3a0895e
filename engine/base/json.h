// SPDX-License-Identifier: Apache-2.0
// JSON read with nlohmann's library, with what a checkpoint loader needs on top: no exceptions,
// duplicate keys and non-finite numbers refused, depth bounded, and every error naming the file and
// the field.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace asynctls {

using Json = nlohmann::json;

// Parses `text`; `origin` (a file name) starts every error message. Errors: INVALID_ARGUMENT with
// the byte offset.
absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view origin);

// Reads and parses a file. Errors: NOT_FOUND, or as ParseJson. Files over `max_bytes` are refused.
absl::StatusOr<Json> ReadJsonFile(const std::string& path, int64_t max_bytes = 256ll << 20);

// The whole file as bytes. Errors: NOT_FOUND, INVALID_ARGUMENT (too large).
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes = 256ll << 20);

}  // namespace asynctls
