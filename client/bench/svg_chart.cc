// SPDX-License-Identifier: Apache-2.0
#include "client/bench/svg_chart.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "client/bench/compare.h"

namespace asynctls {
namespace {

constexpr double kWidth = 560, kHeight = 250;
constexpr double kLeft = 54, kRight = 14, kTop = 12, kBottom = 30;

// Data to pixels.
class Frame {
 public:
  explicit Frame(const Chart& chart) : log_x_(chart.log_x) {
    for (const ChartSeries& series : chart.series) {
      for (const auto& [x, y] : series.points) {
        if (log_x_ && x <= 0) continue;
        x_low_ = std::min(x_low_, X(x));
        x_high_ = std::max(x_high_, X(x));
        if (y.has_value()) y_high_ = std::max(y_high_, *y);
      }
    }
    empty_ = x_low_ > x_high_;
    if (empty_) return;
    if (x_low_ == x_high_) {
      x_low_ -= 0.5;
      x_high_ += 0.5;
    }
    if (y_high_ <= 0) y_high_ = 1;
    y_ticks_ = Ticks(0, chart.y_max > 0 ? chart.y_max : y_high_, 4);
    y_high_ = chart.y_max > 0 ? chart.y_max : y_ticks_.back();
  }

  bool empty() const { return empty_; }
  double x_low() const { return x_low_; }
  double x_high() const { return x_high_; }
  const std::vector<double>& y_ticks() const { return y_ticks_; }

  double X(double x) const { return log_x_ ? std::log10(x) : x; }  // on the axis
  double AxisX(double x) const {
    return kLeft + (x - x_low_) / (x_high_ - x_low_) * (kWidth - kLeft - kRight);
  }
  double PixelX(double x) const { return AxisX(X(x)); }
  double PixelY(double y) const {
    return kHeight - kBottom - std::min(1.0, y / y_high_) * (kHeight - kTop - kBottom);
  }

 private:
  bool log_x_, empty_ = false;
  double x_low_ = std::numeric_limits<double>::infinity();
  double x_high_ = -std::numeric_limits<double>::infinity();
  double y_high_ = 0;
  std::vector<double> y_ticks_;
};

// Ticks are round: 5, 0.02, 20000.
std::string TickText(double value) {
  return std::abs(value) >= 1000 ? absl::StrFormat("%.0f", value) : absl::StrFormat("%g", value);
}

void DrawAxes(const Chart& chart, const Frame& frame, std::string& out) {
  for (double y : frame.y_ticks()) {
    const double at = frame.PixelY(y);
    absl::StrAppendFormat(&out,
                          "<line class=grid x1=%.1f x2=%.1f y1=%.1f y2=%.1f />"
                          "<text class=tick text-anchor=end x=%.1f y=%.1f>%s</text>",
                          kLeft,
                          kWidth - kRight,
                          at,
                          at,
                          kLeft - 6,
                          at + 3.5,
                          TickText(y));
  }
  std::vector<std::pair<double, std::string>> ticks;  // place on the axis, text
  if (chart.log_x) {
    for (double e = std::floor(frame.x_low()); e <= frame.x_high(); ++e) {
      for (double step : {1.0, 2.0, 5.0}) {
        const double at = e + std::log10(step);
        const bool wide = frame.x_high() - frame.x_low() > 2.5;
        if (at < frame.x_low() || at > frame.x_high() || (wide && step > 1)) continue;
        ticks.emplace_back(at, TickText(step * std::pow(10, e)));
      }
    }
  } else {
    for (double x : Ticks(frame.x_low(), frame.x_high(), 6)) {
      if (x >= frame.x_low() && x <= frame.x_high()) ticks.emplace_back(x, TickText(x));
    }
  }
  for (const auto& [x, text] : ticks) {
    absl::StrAppendFormat(&out,
                          "<text class=tick text-anchor=middle x=%.1f y=%.1f>%s</text>",
                          frame.AxisX(x),
                          kHeight - kBottom + 16,
                          text);
  }
  absl::StrAppendFormat(&out,
                        "<line class=axis x1=%.1f x2=%.1f y1=%.1f y2=%.1f />",
                        kLeft,
                        kWidth - kRight,
                        kHeight - kBottom,
                        kHeight - kBottom);
}

void DrawLine(const ChartSeries& series,
              size_t number,
              const Chart& chart,
              const Frame& frame,
              std::string& out) {
  std::string path;
  bool pen_down = false;
  std::string dots;  // of points without neighbours
  for (size_t i = 0; i < series.points.size(); ++i) {
    const auto& [x, y] = series.points[i];
    if (!y.has_value() || (chart.log_x && x <= 0)) {
      pen_down = false;
      continue;
    }
    const bool alone =
        !pen_down && (i + 1 == series.points.size() || !series.points[i + 1].second.has_value());
    if (alone) {
      absl::StrAppendFormat(&dots,
                            "<circle class=\"dot s%d\" cx=%.1f cy=%.1f r=2 />",
                            number,
                            frame.PixelX(x),
                            frame.PixelY(*y));
    }
    absl::StrAppendFormat(
        &path, "%s%.1f %.1f", pen_down ? "L" : "M", frame.PixelX(x), frame.PixelY(*y));
    pen_down = true;
  }
  absl::StrAppendFormat(&out, "<path class=\"line s%d\" d=\"%s\"/>%s", number, path, dots);
}

void DrawBars(const ChartSeries& series, const Frame& frame, std::string& out) {
  for (size_t i = 0; i + 1 < series.points.size(); ++i) {
    const double y = series.points[i].second.value_or(0);
    if (y <= 0) continue;
    const double left = frame.PixelX(series.points[i].first);
    const double right = frame.PixelX(series.points[i + 1].first);
    const double top = frame.PixelY(y);
    absl::StrAppendFormat(&out,
                          "<rect class=\"bar s1\" x=%.1f y=%.1f width=%.1f height=%.1f>"
                          "<title>%s to %s: %s</title></rect>",
                          left,
                          top,
                          std::max(1.0, right - left - 1),
                          kHeight - kBottom - top,
                          ShortNumber(series.points[i].first),
                          ShortNumber(series.points[i + 1].first),
                          ShortNumber(y));
  }
}

// What the page's script shows under the pointer: [{"n", "p": [[pixel x, x, y], ..]}, ..].
std::string HoverData(const Chart& chart, const Frame& frame) {
  std::string out = "[";
  for (const ChartSeries& series : chart.series) {
    absl::StrAppend(
        &out, out.size() > 1 ? "," : "", "{\"n\":", Json(series.name).dump(), ",\"p\":[");
    bool first = true;
    for (const auto& [x, y] : series.points) {
      if (!y.has_value() || (chart.log_x && x <= 0)) continue;
      absl::StrAppendFormat(&out,
                            "%s[%.1f,\"%s\",\"%s\"]",
                            first ? "" : ",",
                            frame.PixelX(x),
                            ShortNumber(x),
                            ShortNumber(*y));
      first = false;
    }
    out += "]}";
  }
  return EscapeHtml(out + "]");
}

std::string Legend(const Chart& chart) {
  if (chart.series.size() < 2) return "";
  std::string out = "<span class=legend>";
  for (size_t i = 0; i < chart.series.size(); ++i) {
    absl::StrAppend(&out, "<i class=s", i + 1, "></i>", EscapeHtml(chart.series[i].name), " ");
  }
  return out + "</span>";
}

}  // namespace

std::string EscapeHtml(const std::string& text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

std::vector<double> Ticks(double low, double high, int count) {
  const double rough = (high - low) / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (double round : {5.0, 2.0, 1.0}) {
    if (round * power >= rough * (1 - 1e-9)) step = round * power;
  }
  std::vector<double> out;
  const double first = std::floor(low / step + 1e-9);
  const double last = std::ceil(high / step - 1e-9);
  for (double i = first; i <= last; ++i) out.push_back(i * step);
  return out;
}

std::string ChartSvg(const Chart& chart) {
  const Frame frame(chart);
  std::string out = absl::StrCat("<figure><figcaption>",
                                 EscapeHtml(chart.title),
                                 " <small>",
                                 EscapeHtml(chart.y_unit),
                                 "</small>",
                                 Legend(chart),
                                 "</figcaption>");
  if (frame.empty()) return out + "<p class=none>nothing measured</p></figure>";
  absl::StrAppendFormat(&out,
                        "<svg viewBox=\"0 0 %.0f %.0f\" role=img aria-label=\"%s\" data-x=\"%s\" "
                        "data-y=\"%s\" data-points=\"%s\">",
                        kWidth,
                        kHeight,
                        EscapeHtml(chart.title),
                        EscapeHtml(chart.x_unit),
                        EscapeHtml(chart.y_unit),
                        chart.bars ? "[]" : HoverData(chart, frame));
  DrawAxes(chart, frame, out);
  for (size_t i = 0; i < chart.series.size(); ++i) {
    if (chart.bars) {
      DrawBars(chart.series[i], frame, out);
    } else {
      DrawLine(chart.series[i], i + 1, chart, frame, out);
    }
  }
  absl::StrAppendFormat(&out,
                        "<text class=tick text-anchor=end x=%.1f y=%.1f>%s</text>"
                        "</svg></figure>",
                        kWidth - kRight,
                        kHeight - 2,
                        EscapeHtml(chart.x_unit));
  return out;
}

}  // namespace asynctls
