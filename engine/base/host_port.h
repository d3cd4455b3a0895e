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

// `listen`, a valid HOST:PORT, with the port that was bound.
std::string WithPort(const std::string& listen, int port);

}  // namespace asynctls
