// SPDX-License-Identifier: Apache-2.0
// Logging is spdlog; this is the one place it is set up. Kernels never log.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "spdlog/spdlog.h"

namespace asynctls {

// Sends the default logger to stderr at `level` (trace, debug, info, warn, error, off). Called once,
// by main. Errors: INVALID_ARGUMENT for an unknown level.
absl::Status InitLogging(const std::string& level);

}  // namespace asynctls
