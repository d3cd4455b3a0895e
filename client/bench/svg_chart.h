// SPDX-License-Identifier: Apache-2.0
// Charts as inline SVG. Colours are CSS variables (--series-1.., --grid, --muted, --text) that the
// page defines for light and dark mode. Pure.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace asynctls {

struct ChartSeries {
  std::string name;
  std::vector<std::pair<double, std::optional<double>>> points;  // a gap where y is absent
};

struct Chart {
  std::string title, x_unit, y_unit;
  bool log_x = false;  // points with x <= 0 are left out
  bool bars = false;   // one series; x is a bar's left side, the last point only ends it
  double y_max = 0;    // of the axis; 0 = from the points
  std::vector<ChartSeries> series;  // at most 4
};

// A <figure>. Without any point: the title and "nothing measured".
std::string ChartSvg(const Chart& chart);

// About `count` round numbers that cover [low, high]. Requires: low < high, both finite.
std::vector<double> Ticks(double low, double high, int count);

// &, <, >, " and ' as entities.
std::string EscapeHtml(const std::string& text);

}  // namespace asynctls
