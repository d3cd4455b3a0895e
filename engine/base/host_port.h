// SPDX-License-Identifier: Apache-2.0
// Addresses as people write them: HOST:PORT.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace asynctls {

// "HOST:PORT", "[V6]:PORT", port 0..65535. Errors: INVALID_ARGUMENT naming `field`.
absl::StatusOr<std::pair<std::string, int>> ParseHostPort(const std::string& field,
                                                          const std::string& value);

}  // namespace asynctls
