// SPDX-License-Identifier: Apache-2.0
// The numbers behind the status page, as one JSON object.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/frontend/frontend.h"
#include "server/frontend/health.h"

namespace asynctls {

inline constexpr size_t kMaxShownRequests = 256;
inline constexpr size_t kMaxHeatCells = 256;  // of one request

// While the model loads only version and health. Any thread; some 100 KB with 256 requests.
std::string StatusJsonText(const Frontend& frontend, const Health& health, absl::Time now);

// `heat`, one byte a block, in at most kMaxHeatCells cells of equally many blocks (the last may
// have fewer), each the hottest of its blocks.
std::string HeatCells(absl::string_view heat);

}  // namespace asynctls
