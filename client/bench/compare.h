// SPDX-License-Identifier: Apache-2.0
// The figures of `asynctls bench` reports as rows of a table, alone and side by side. Pure.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/json.h"

namespace asynctls {

inline constexpr char kReportSchema[] = "asynctls.bench/1";

// Errors: INVALID_ARGUMENT, starting with `origin`, when `json` is no report of this schema.
absl::Status CheckReport(const Json& json, const std::string& origin);

// One figure of a report.
struct Figure {
  std::string name;  // "TTFT p99"
  std::string unit;  // ms, 1/s, %, or empty
  double value = 0;
  int better = 0;  // 1: more is better, -1: less is better, 0: neither
};
// Requires: `report` passed CheckReport.
std::vector<Figure> Figures(const Json& report);

struct ComparedFigure {
  Figure a, b;
  // b / a; absent where a is 0.
  bool has_ratio = false;
  double ratio = 0;
};
// The figures both reports have. Requires: both passed CheckReport.
std::vector<ComparedFigure> Compare(const Json& a, const Json& b);

struct FlagDifference {
  std::string name, a, b;  // "-" where it was not given
};
// Flags that differ, but for those that only say where output goes.
std::vector<FlagDifference> DifferentFlags(const Json& a, const Json& b);

// Tables for a terminal.
std::string ReportText(const Json& report);
std::string CompareText(const Json& a, const Json& b);

// 0.123 with three significant digits, 12345 without a fraction.
std::string ShortNumber(double value);

}  // namespace asynctls
