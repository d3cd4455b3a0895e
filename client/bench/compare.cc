// SPDX-License-Identifier: Apache-2.0
#include "client/bench/compare.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace asynctls {
namespace {

constexpr const char* kLatencies[] = {"ttft", "itl", "tpot", "e2e"};
constexpr const char* kLatencyNames[] = {"TTFT", "ITL", "TPOT", "end to end"};
constexpr const char* kQuantiles[] = {"mean", "p50", "p90", "p99", "p99.9", "max"};

std::string FlagText(const Json& flags, const std::string& name) {
  if (!flags.contains(name)) return "-";
  const Json& value = flags[name];
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string Overhead(const Json& client) {
  std::string out = absl::StrFormat(
      "client: %.2f cores, %.1f us of CPU per message, %d threads; a thread wakes up %.2f ms late "
      "(p99)\n",
      client["cores_used"].get<double>(),
      client["cpu_us_per_message"].get<double>(),
      client["threads"].get<int>(),
      1000 * client["wakeup_lag"]["p99"].get<double>());
  if (client["send_lateness"].is_object()) {
    absl::StrAppendFormat(&out,
                          "requests were sent %.2f ms after their time (p99), at most %.2f ms\n",
                          1000 * client["send_lateness"]["p99"].get<double>(),
                          1000 * client["send_lateness"]["max"].get<double>());
  }
  return out;
}

}  // namespace

absl::Status CheckReport(const Json& json, const std::string& origin) {
  if (!json.is_object() || json.value("schema", Json()) != Json(kReportSchema)) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, " is not a report of schema ", kReportSchema));
  }
  for (const char* part : {"flags", "latency", "throughput", "series", "client", "machine"}) {
    if (!json.contains(part) || !json[part].is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(origin, ": no object '", part, "'"));
    }
  }
  for (const char* latency : kLatencies) {
    const Json& figures = json["latency"].value(latency, Json());
    for (const char* quantile : kQuantiles) {
      if (!figures.is_object() || !figures.value(quantile, Json()).is_number()) {
        return absl::InvalidArgumentError(
            absl::StrCat(origin, ": no number latency.", latency, ".", quantile));
      }
    }
  }
  return absl::OkStatus();
}

std::vector<Figure> Figures(const Json& report) {
  const Json& throughput = report["throughput"];
  std::vector<Figure> out;
  const auto add = [&](const char* name, const char* unit, const char* key, double scale, int up) {
    out.push_back({name, unit, scale * throughput.value(key, 0.0), up});
  };
  add("requests", "1/s", "finished_requests_per_second", 1, 1);
  add("prompt tokens", "1/s", "prompt_tokens_per_second", 1, 1);
  add("output tokens", "1/s", "output_tokens_per_second", 1, 1);
  add("KV read", "%", "kv_read_fraction", 100, 0);
  const Json& goodput = report.value("goodput", Json());
  if (goodput.is_object()) {
    out.push_back({"goodput", "1/s", goodput.value("good_requests_per_second", 0.0), 1});
    out.push_back({"good requests", "%", 100 * goodput.value("fraction", 0.0), 1});
  }
  out.push_back({"failed", "", report.value("failed", 0.0), -1});
  for (size_t i = 0; i < std::size(kLatencies); ++i) {
    for (const char* quantile : kQuantiles) {
      const double seconds = report["latency"][kLatencies[i]][quantile].get<double>();
      out.push_back({absl::StrCat(kLatencyNames[i], " ", quantile), "ms", 1000 * seconds, -1});
    }
  }
  return out;
}

std::vector<ComparedFigure> Compare(const Json& a, const Json& b) {
  std::map<std::string, Figure> in_b;
  for (const Figure& figure : Figures(b)) in_b[figure.name] = figure;
  std::vector<ComparedFigure> out;
  for (const Figure& figure : Figures(a)) {
    const auto found = in_b.find(figure.name);
    if (found == in_b.end()) continue;
    ComparedFigure row{figure, found->second, figure.value != 0, 0};
    if (row.has_ratio) row.ratio = row.b.value / row.a.value;
    out.push_back(row);
  }
  return out;
}

std::vector<FlagDifference> DifferentFlags(const Json& a, const Json& b) {
  std::set<std::string> names;
  for (const Json* report : {&a, &b}) {
    for (const auto& [name, value] : (*report)["flags"].items()) names.insert(name);
  }
  names.erase("report");
  names.erase("json");
  std::vector<FlagDifference> out;
  for (const std::string& name : names) {
    const FlagDifference flag{name, FlagText(a["flags"], name), FlagText(b["flags"], name)};
    if (flag.a != flag.b) out.push_back(flag);
  }
  return out;
}

std::string ReportText(const Json& report) {
  std::string out = "kind       outcome             requests\n";
  for (const Json& row : report["outcomes"]) {
    absl::StrAppendFormat(&out,
                          "%-10s %-18s %9d%s\n",
                          row["kind"].get<std::string>(),
                          row["outcome"].get<std::string>(),
                          row["requests"].get<uint64_t>(),
                          row["expected"].get<bool>() ? "" : "  unexpected");
  }
  absl::StrAppendFormat(&out, "\n%-12s", "ms");
  for (const char* quantile : kQuantiles) absl::StrAppendFormat(&out, " %10s", quantile);
  for (size_t i = 0; i < std::size(kLatencies); ++i) {
    absl::StrAppendFormat(&out, "\n%-12s", kLatencyNames[i]);
    for (const char* quantile : kQuantiles) {
      absl::StrAppendFormat(
          &out, " %10.2f", 1000 * report["latency"][kLatencies[i]][quantile].get<double>());
    }
  }
  out += "\n\n";
  for (const Figure& figure : Figures(report)) {
    if (figure.unit == "ms") continue;
    absl::StrAppendFormat(
        &out, "%-16s %12s %s\n", figure.name, ShortNumber(figure.value), figure.unit);
  }
  return absl::StrCat(out, "\n", Overhead(report["client"]));
}

std::string CompareText(const Json& a, const Json& b) {
  std::string out;
  for (const FlagDifference& flag : DifferentFlags(a, b)) {
    absl::StrAppend(&out, "--", flag.name, ": ", flag.a, " | ", flag.b, "\n");
  }
  absl::StrAppendFormat(&out, "\n%-18s %12s %12s %8s\n", "", "A", "B", "B / A");
  for (const ComparedFigure& row : Compare(a, b)) {
    absl::StrAppendFormat(&out,
                          "%-18s %12s %12s %8s %s\n",
                          row.a.name,
                          ShortNumber(row.a.value),
                          ShortNumber(row.b.value),
                          row.has_ratio ? absl::StrFormat("%.3f", row.ratio) : "-",
                          row.a.unit);
  }
  return out;
}

std::string ShortNumber(double value) {
  const double size = std::abs(value);
  if (size == 0 || size >= 1000) return absl::StrFormat("%.0f", value);
  return size >= 100 ? absl::StrFormat("%.1f", value)
         : size >= 1 ? absl::StrFormat("%.2f", value)
                     : absl::StrFormat("%.3g", value);
}

}  // namespace asynctls
