// SPDX-License-Identifier: Apache-2.0
// A small report as `asynctls bench --json` prints it, for the tests of what reads reports.
#pragma once

#include "client/bench/compare.h"
#include "client/bench/recorder.h"

namespace asynctls::testing {

// Latencies grow with `seconds_per_token`.
inline Json SampleReport(double seconds_per_token) {
  Recorder recorder(*GoodputLimits::Parse("ttft:1000"));
  for (int i = 0; i < 20; ++i) {
    Record record;
    record.outcome = "stop";
    record.sent = 0.1 * i;
    record.first_token = record.sent + 10 * seconds_per_token;
    record.gaps.assign(9, static_cast<float>(seconds_per_token));
    record.ended = *record.first_token + 9 * seconds_per_token;
    record.prompt_tokens = 100;
    recorder.Add(record);
  }
  Json report = recorder.ToJson();
  report["schema"] = kReportSchema;
  report["version"] = "0";
  report["date"] = "2026-11-25T00:00:00Z";
  report["flags"] = {{"target", "h:1"}, {"rate", "10"}};
  report["model"] = {{"name", "<b>model</b>"}};
  report["machine"] = {{"cpu", "some"}};
  report["client"] = {{"cores_used", 0.5},
                      {"cpu_us_per_message", 12.5},
                      {"threads", 7},
                      {"wakeup_lag", {{"p50", 1e-4}, {"p99", 2e-4}, {"max", 1e-3}}},
                      {"send_lateness", {{"p50", 1e-4}, {"p99", 2e-4}, {"max", 1e-3}}}};
  return report;
}

}  // namespace asynctls::testing
