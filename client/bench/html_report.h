// SPDX-License-Identifier: Apache-2.0
// The reports of `asynctls bench` as one HTML file each: nothing is loaded from elsewhere, charts
// are inline SVG, light and dark mode follow the reader's setting. Pure.
#pragma once

#include <string>

#include "engine/base/json.h"

namespace asynctls {

// Requires: the reports passed CheckReport.
std::string HtmlReport(const Json& report);
std::string HtmlComparison(const Json& a, const Json& b);

}  // namespace asynctls
