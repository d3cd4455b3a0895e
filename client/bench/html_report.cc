// SPDX-License-Identifier: Apache-2.0
#include "client/bench/html_report.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/bench/compare.h"
#include "client/bench/svg_chart.h"

namespace asynctls {
namespace {

constexpr char kStyle[] = R"(
:root{color-scheme:light dark;--page:#f9f9f7;--card:#fff;--text:#171716;--muted:#6b6a66;--grid:#e6e5e1;
--axis:#c3c2bd;--line:#e2e1dc;--good:#0b7a0b;--bad:#c22f2f;--series-1:#2a78d6;--series-2:#d9622b;
--series-3:#1a8f6a;--series-4:#7a5bc7}
@media(prefers-color-scheme:dark){:root{--page:#111110;--card:#1a1a19;--text:#f4f4f2;--muted:#a3a29c;
--grid:#2b2b29;--axis:#4a4a46;--line:#2f2f2c;--good:#4cc24c;--bad:#f07070;--series-1:#4a94ee;
--series-2:#ee8450;--series-3:#3bb58d;--series-4:#a48bea}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:22px;margin:0 0 2px}h2{font-size:16px;margin:34px 0 10px}
.sub{color:var(--muted);margin:0 0 20px;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(125px,1fr));gap:12px}
.tile,figure,.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:12px 14px}.tile b{display:block;font-size:21px;font-weight:600;white-space:nowrap}
.tile span{color:var(--muted);font-size:13px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:14px}
figure{margin:0;padding:12px 14px 6px;position:relative;min-width:0}
figcaption{font-weight:600;font-size:14px}small{color:var(--muted);font-weight:400}
.legend{float:right;font-weight:400;font-size:13px;color:var(--muted)}
.legend i{display:inline-block;width:10px;height:10px;border-radius:3px;margin:0 5px 0 10px}
svg{width:100%;height:auto;display:block;overflow:visible}
.grid{stroke:var(--grid)}.axis{stroke:var(--axis)}
.tick{fill:var(--muted);font-size:11px;font-variant-numeric:tabular-nums}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.s1{stroke:var(--series-1)}.line.s2{stroke:var(--series-2)}
.line.s3{stroke:var(--series-3)}.line.s4{stroke:var(--series-4)}
.bar.s1,.dot.s1{fill:var(--series-1)}.dot.s2{fill:var(--series-2)}
.dot.s3{fill:var(--series-3)}.dot.s4{fill:var(--series-4)}
i.s1{background:var(--series-1)}i.s2{background:var(--series-2)}
i.s3{background:var(--series-3)}i.s4{background:var(--series-4)}
.cross{stroke:var(--axis);stroke-dasharray:3 3}
.tip{position:absolute;pointer-events:none;background:var(--card);border:1px solid var(--axis);
border-radius:6px;padding:4px 8px;font-size:12px;white-space:pre;display:none;z-index:1}
.card{overflow-x:auto;padding:4px 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:6px 14px;border-top:1px solid var(--line);font-weight:400}
tr:first-child th,tr:first-child td{border-top:0}
th:first-child,td:first-child,.left{text-align:left}thead th,.none{color:var(--muted)}
.good{color:var(--good)}.bad{color:var(--bad)}
)";

// Shows the nearest points under the pointer.
constexpr char kScript[] = R"(
for(const svg of document.querySelectorAll('svg[data-points]')){
 const all=JSON.parse(svg.dataset.points);if(!all.length)continue;
 const tip=document.createElement('div');tip.className='tip';svg.parentNode.append(tip);
 const cross=svg.appendChild(svg.querySelector('line').cloneNode());cross.setAttribute('class','cross');
 const hide=()=>{tip.style.display='none';cross.style.display='none'};hide();
 svg.onpointerleave=hide;
 svg.onpointermove=e=>{const box=svg.getBoundingClientRect(),scale=560/box.width;
  const x=(e.clientX-box.left)*scale;let at=null,text=[];
  for(const s of all){let best=null;for(const p of s.p)if(!best||Math.abs(p[0]-x)<Math.abs(best[0]-x))best=p;
   if(!best)continue;if(at===null){at=best[0];text.push(best[1]+' '+svg.dataset.x)}
   text.push(s.n+'  '+best[2]+' '+svg.dataset.y)}
  if(at===null)return hide();
  cross.setAttribute('x1',at);cross.setAttribute('x2',at);cross.setAttribute('y1',12);
  cross.setAttribute('y2',220);cross.style.display='';
  tip.textContent=text.join('\n');tip.style.display='block';
  const left=svg.offsetLeft+at/scale;
  tip.style.left=(left+(at>300?-tip.offsetWidth-8:12))+'px';tip.style.top='44px'}}
)";

std::string Text(const Json& object, const char* key) {
  const Json value = object.value(key, Json());
  return EscapeHtml(value.is_string() ? value.get<std::string>()
                    : value.is_null() ? "-"
                                      : value.dump());
}

std::string Page(const std::string& title, const std::string& body) {
  return absl::StrCat(
      "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
      "<meta name=viewport content=\"width=device-width,initial-scale=1\"><title>",
      title,
      "</title><style>",
      kStyle,
      "</style></head><body><main>",
      body,
      "</main><script>",
      kScript,
      "</script></body></html>\n");
}

// ----------------------------------------------------------------------------------------- charts

using Points = std::vector<std::pair<double, std::optional<double>>>;

// What is compared: one report, or two with their names.
struct Named {
  std::string prefix;  // of the names of its series
  const Json* report;
};

Points SeriesOf(const Json& report, const char* key, double scale) {
  Points out;
  const Json& series = report["series"];
  const Json t = series.value("t", Json::array()), y = series.value(key, Json::array());
  for (size_t i = 0; i < std::min(t.size(), y.size()); ++i) {
    if (!t[i].is_number()) continue;
    out.emplace_back(t[i].get<double>(), std::nullopt);
    if (y[i].is_number()) out.back().second = scale * y[i].get<double>();
  }
  return out;
}

std::string OverTime(const std::vector<Named>& reports,
                     const std::string& title,
                     const char* unit,
                     std::vector<std::pair<const char*, const char*>> keys,
                     double scale = 1) {
  Chart chart{title, "s", unit, false, false, 0, {}};
  for (const Named& named : reports) {
    for (const auto& [key, name] : keys) {
      chart.series.push_back({named.prefix + name, SeriesOf(*named.report, key, scale)});
    }
  }
  return ChartSvg(chart);
}

std::string Cdf(const std::vector<Named>& reports, const char* key, const std::string& title) {
  Chart chart{title + ", cumulative", "ms", "%", true, false, 100, {}};
  for (const Named& named : reports) {
    Points points;
    for (const Json& point : (*named.report)["latency"][key].value("cdf", Json::array())) {
      if (!point.is_array() || point.size() != 2 || !point[0].is_number()) continue;
      points.emplace_back(1000 * point[0].get<double>(), 100 * point[1].get<double>());
    }
    chart.series.push_back({named.prefix.empty() ? title : named.prefix, points});
  }
  return ChartSvg(chart);
}

std::string HistogramOf(const Json& report, const char* key, const std::string& title) {
  Points points;
  const Json bins = report["latency"][key].value("histogram", Json::array());
  for (const Json& bin : bins) {
    if (!bin.is_array() || bin.size() != 3) continue;
    points.emplace_back(1000 * bin[0].get<double>(), bin[2].get<double>());
  }
  if (!points.empty()) points.emplace_back(1000 * bins.back()[1].get<double>(), std::nullopt);
  Chart chart{title, "ms", "samples", true, true, 0, {{title, points}}};
  return ChartSvg(chart);
}

std::string TimeCharts(const std::vector<Named>& reports) {
  return absl::StrCat(
      "<h2>Over time</h2><div class=charts>",
      OverTime(reports, "Output tokens", "1/s", {{"output_tokens_per_second", "tokens"}}),
      OverTime(reports, "Running requests", "", {{"running", "running"}}),
      OverTime(
          reports, "Time to first token", "ms", {{"ttft_p50", "p50"}, {"ttft_p99", "p99"}}, 1e3),
      OverTime(reports, "Inter-token latency", "ms", {{"itl_p50", "p50"}, {"itl_p99", "p99"}}, 1e3),
      OverTime(reports, "Requests ended", "1/s", {{"requests_per_second", "ended"}}),
      "</div>");
}

std::string CdfCharts(const std::vector<Named>& reports) {
  return absl::StrCat(Cdf(reports, "ttft", "Time to first token"),
                      Cdf(reports, "itl", "Inter-token latency"),
                      Cdf(reports, "tpot", "Time per output token"),
                      Cdf(reports, "e2e", "End to end"));
}

// ----------------------------------------------------------------------------------------- tables

std::string Tile(const std::string& value, const std::string& label) {
  return absl::StrCat("<div class=tile><b>", value, "</b><span>", label, "</span></div>");
}

std::string Tiles(const Json& report) {
  const Json& throughput = report["throughput"];
  const Json& latency = report["latency"];
  const auto rate = [&](const char* key) { return ShortNumber(throughput.value(key, 0.0)); };
  const auto ms = [&](const char* key, const char* q) {
    return ShortNumber(1000 * latency[key][q].get<double>()) + " ms";
  };
  std::string out = absl::StrCat("<div class=tiles>",
                                 Tile(rate("output_tokens_per_second"), "output tokens/s"),
                                 Tile(rate("prompt_tokens_per_second"), "prompt tokens/s"),
                                 Tile(rate("finished_requests_per_second"), "requests/s"),
                                 Tile(ms("ttft", "p50"), "TTFT, median"),
                                 Tile(ms("ttft", "p99"), "TTFT, p99"),
                                 Tile(ms("itl", "p50"), "ITL, median"));
  const Json& goodput = report.value("goodput", Json());
  if (goodput.is_object()) {
    absl::StrAppend(
        &out, Tile(ShortNumber(100 * goodput.value("fraction", 0.0)) + " %", "within the limits"));
  }
  return absl::StrCat(out, Tile(Text(report, "failed"), "failed requests"), "</div>");
}

std::string LatencyTable(const Json& report) {
  std::string out =
      "<h2>Latency</h2><div class=card><table><thead><tr><th>ms<th>samples<th>mean<th>p50<th>p90"
      "<th>p99<th>p99.9<th>max</thead>";
  for (const auto& [key, name] :
       std::vector<std::pair<const char*, const char*>>{{"ttft", "Time to first token (TTFT)"},
                                                        {"itl", "Inter-token latency (ITL)"},
                                                        {"tpot", "Time per output token (TPOT)"},
                                                        {"e2e", "End to end"}}) {
    const Json& row = report["latency"][key];
    absl::StrAppend(&out, "<tr><th>", name, "<td>", Text(row, "count"));
    for (const char* q : {"mean", "p50", "p90", "p99", "p99.9", "max"}) {
      absl::StrAppendFormat(&out, "<td>%.2f", 1000 * row[q].get<double>());
    }
  }
  return out + "</table></div>";
}

std::string OutcomeTable(const Json& report) {
  std::string out =
      "<h2>Outcomes</h2><div class=card><table><thead><tr><th>sent as<th class=left>ended as"
      "<th>requests<th></thead>";
  for (const Json& row : report.value("outcomes", Json::array())) {
    const bool expected = row.value("expected", true);
    absl::StrAppend(&out,
                    "<tr><th>",
                    Text(row, "kind"),
                    "<td class=left>",
                    Text(row, "outcome"),
                    "<td>",
                    Text(row, "requests"),
                    "<td>",
                    expected ? "" : "<span class=bad>unexpected</span>");
  }
  return out + "</table></div>";
}

std::string Facts(const char* title, const Json& object) {
  std::string out = absl::StrCat("<h2>", title, "</h2><div class=card><table>");
  for (const auto& [name, value] : object.items()) {
    if (value.is_structured()) continue;
    absl::StrAppend(
        &out, "<tr><th>", EscapeHtml(name), "<td class=left>", Text(object, name.c_str()));
  }
  return out + "</table></div>";
}

std::string Subtitle(const Json& report) {
  return absl::StrCat(Text(report.value("model", Json::object()), "name"),
                      " at ",
                      Text(report["flags"], "target"),
                      ", ",
                      Text(report, "date"),
                      ", ",
                      Text(report["machine"], "cpu"));
}

}  // namespace

std::string HtmlReport(const Json& report) {
  const std::vector<Named> one = {{"", &report}};
  return Page("asynctls bench",
              absl::StrCat("<h1>asynctls bench</h1><p class=sub>",
                           Subtitle(report),
                           "</p>",
                           Tiles(report),
                           TimeCharts(one),
                           LatencyTable(report),
                           "<h2>Distributions</h2><div class=charts>",
                           HistogramOf(report, "ttft", "Time to first token"),
                           HistogramOf(report, "itl", "Inter-token latency"),
                           CdfCharts(one),
                           "</div>",
                           OutcomeTable(report),
                           Facts("Client", report["client"]),
                           Facts("Flags", report["flags"]),
                           Facts("Model", report.value("model", Json::object())),
                           Facts("Machine of the client", report["machine"])));
}

std::string HtmlComparison(const Json& a, const Json& b) {
  std::string rows;
  for (const ComparedFigure& row : Compare(a, b)) {
    const bool matters =
        row.has_ratio && row.a.better != 0 && std::max(row.ratio, 1 / row.ratio) > 1.05;
    const bool good = (row.ratio > 1) == (row.a.better > 0);
    absl::StrAppend(&rows,
                    "<tr><th>",
                    row.a.name,
                    "<td>",
                    ShortNumber(row.a.value),
                    "<td>",
                    ShortNumber(row.b.value),
                    "<td class=left>",
                    row.a.unit,
                    "<td class=",
                    matters ? (good ? "good" : "bad") : "none",
                    ">",
                    row.has_ratio ? absl::StrFormat("%.3f", row.ratio) : "-");
  }
  std::string flags;
  for (const FlagDifference& flag : DifferentFlags(a, b)) {
    absl::StrAppend(&flags,
                    "<tr><th>--",
                    EscapeHtml(flag.name),
                    "<td class=left>",
                    EscapeHtml(flag.a),
                    "<td class=left>",
                    EscapeHtml(flag.b));
  }
  if (!flags.empty()) {
    flags = absl::StrCat(
        "<h2>Flags that differ</h2><div class=card><table><thead><tr><th><th class=left>A"
        "<th class=left>B</thead>",
        flags,
        "</table></div><h2>Figures</h2>");
  }
  const std::vector<Named> both = {{"A ", &a}, {"B ", &b}};
  return Page("asynctls bench: comparison",
              absl::StrCat("<h1>asynctls bench: A and B</h1><p class=sub>A: ",
                           Subtitle(a),
                           "<br>B: ",
                           Subtitle(b),
                           "</p>",
                           flags,
                           "<div class=card><table><thead><tr><th><th>A<th>B<th><th>B / A</thead>",
                           rows,
                           "</table></div><h2>Distributions</h2><div class=charts>",
                           CdfCharts(both),
                           "</div>",
                           TimeCharts(both)));
}

}  // namespace asynctls
