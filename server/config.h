// SPDX-License-Identifier: Apache-2.0
// ServerConfig: a text-format file overlaid by flags, defaults filled in, checked once, then
// constant. The flags are made from the fields of config.proto, so none can be forgotten:
// max_step_tokens is --max-step-tokens, sparse.budget is --sparse.budget.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "asynctls/v1/config.pb.h"

namespace asynctls {

// What a field that is nowhere set holds.
v1::ServerConfig DefaultConfig();

// `args` without the program's name: "--name value" or "--name=value"; a bool also as "--name".
// --config FILE is read first, wherever it stands. The result is complete and valid. Errors:
// INVALID_ARGUMENT or NOT_FOUND naming flag or file:line, value and limit.
absl::StatusOr<v1::ServerConfig> LoadConfig(const std::vector<std::string>& args);

// Errors: INVALID_ARGUMENT naming the field, its value and its limit.
absl::Status ValidateConfig(const v1::ServerConfig& config);

// Every flag with its range and default, one a line.
std::string ConfigHelp();

}  // namespace asynctls
