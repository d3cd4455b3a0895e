// SPDX-License-Identifier: Apache-2.0
// asynctls bench: puts workload, runner, recorder and reports together. --compare reads two reports
// and needs no server.
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/bench/bench_plan.h"
#include "client/bench/compare.h"
#include "client/bench/html_report.h"
#include "client/client.h"
#include "client/commands.h"
#include "proto/enum_names.h"

namespace asynctls {
namespace {

constexpr char kUsage[] =
    "usage: asynctls bench --target HOST:PORT (--concurrency N | --rate R)\n"
    "           (--num-requests N | --duration S) [flags]\n"
    "       asynctls bench --compare A.json B.json [--report F.html]\n"
    "Prompts are random token ids; replies run to their asked length. Exit code: 0, 1 a "
    "well-formed\n"
    "request that was not cancelled failed, 2 bad usage.\n\n";

// The value of the first line of `file` that starts with `key`, after its colon.
std::string LineOf(const char* file, const char* key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (!absl::StartsWith(line, key) || colon == std::string::npos) continue;
    return std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
  }
  return "unknown";
}

Json MachineJson() {
  utsname system{};
  uname(&system);
  return {{"cpu", LineOf("/proc/cpuinfo", "model name")},
          {"cores", std::thread::hardware_concurrency()},
          {"memory", LineOf("/proc/meminfo", "MemTotal")},
          {"system", absl::StrCat(system.sysname, " ", system.release, " ", system.machine)}};
}

Json ModelJson(const v1::GetModelInfoResponse& info) {
  const v1::ModelInfo& model = info.model();
  return {{"name", model.name()},
          {"architecture", model.architecture()},
          {"vocab_size", model.vocab_size()},
          {"max_context", model.max_context()},
          {"layers", model.layers()},
          {"parameters", model.parameters()},
          {"server_version", info.server_version()},
          {"kv_blocks", info.kv_blocks()},
          {"block_positions", info.block_positions()},
          {"kv_bytes_per_token", info.kv_bytes_per_token()},
          {"default_mode", ModeName(info.default_sparse().mode())},
          {"default_budget", info.default_sparse().budget()}};
}

Json ShortLatency(const Distribution& values) {
  return {{"p50", values.Quantile(0.5)}, {"p99", values.Quantile(0.99)}, {"max", values.max()}};
}

Json ClientJson(const RunStats& stats) {
  const double messages = static_cast<double>(std::max<uint64_t>(1, stats.messages));
  return {{"cpu_seconds", stats.cpu_seconds},
          {"cores_used", stats.wall_seconds > 0 ? stats.cpu_seconds / stats.wall_seconds : 0},
          {"messages", stats.messages},
          {"cpu_us_per_message", 1e6 * stats.cpu_seconds / messages},
          {"callback_us_per_message", 1e6 * stats.callback_seconds / messages},
          {"threads", stats.threads},
          {"wakeup_lag", ShortLatency(stats.wakeup_lag)},
          {"send_lateness",
           stats.send_lateness.count() > 0 ? ShortLatency(stats.send_lateness) : Json()}};
}

void ShowProgress(const RunOptions& run, const LiveCounts& counts) {
  constexpr size_t kWidth = 30;
  const double by_requests =
      static_cast<double>(counts.ended) / static_cast<double>(run.num_requests);
  const double by_time = counts.seconds / absl::ToDoubleSeconds(run.duration);
  const double done = std::min(1.0, std::max(by_requests, by_time));
  const size_t filled = static_cast<size_t>(done * kWidth);
  absl::FPrintF(stderr,
                "\r[%s%s] %3.0f%%  %d sent, %d running, %d tokens, %.0f tokens/s\033[K",
                std::string(filled, '#'),
                std::string(kWidth - filled, '.'),
                100 * done,
                counts.sent,
                counts.running,
                counts.tokens,
                counts.seconds > 0 ? static_cast<double>(counts.tokens) / counts.seconds : 0);
  std::fflush(stderr);
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  return file ? absl::OkStatus()
              : absl::InvalidArgumentError(absl::StrCat(path, " cannot be written"));
}

absl::StatusOr<Json> Measure(BenchPlan plan) {
  Client client(plan.run.target);
  absl::StatusOr<v1::GetModelInfoResponse> info = client.GetModelInfo();
  if (!info.ok()) return info.status();
  plan.workload.vocab = info->model().vocab_size();
  absl::StatusOr<Workload> workload = Workload::Make(plan.workload);
  if (!workload.ok()) return workload.status();
  Recorder recorder(plan.goodput);
  const bool terminal = isatty(STDERR_FILENO) != 0;
  std::function<void(const LiveCounts&)> on_progress;
  if (terminal) {
    on_progress = [&](const LiveCounts& counts) { ShowProgress(plan.run, counts); };
  }
  const absl::Time begin = absl::Now();
  const RunStats stats = RunBenchmark(plan.run, *workload, recorder, on_progress);
  if (terminal) absl::FPrintF(stderr, "\r\033[K");
  Json json = recorder.ToJson();
  json["schema"] = kReportSchema;
  json["version"] = ASYNCTLS_VERSION;
  json["date"] = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", begin, absl::UTCTimeZone());
  json["flags"] = plan.flags;
  json["model"] = ModelJson(*info);
  json["client"] = ClientJson(stats);
  json["machine"] = MachineJson();
  return json;
}

// The value of --report among `args`, in either spelling, or empty.
absl::StatusOr<std::string> ReportFlag(const std::vector<std::string>& args) {
  static const std::vector<FlagSpec> specs = {{"report", "F.html", ""}};
  const absl::StatusOr<Flags> flags = Flags::Parse(specs, args);
  if (!flags.ok()) return flags.status();
  return flags->Text("report");
}

// --compare A.json B.json takes two values, so it is read before the flags.
int RunCompare(const std::vector<std::string>& args) {
  if (args.size() < 3 || args[0] != "--compare") {
    return Fail(absl::InvalidArgumentError("--compare comes first and needs two files"),
                kExitUsage);
  }
  const auto report = ReportFlag({args.begin() + 3, args.end()});
  if (!report.ok()) return Fail(report.status(), kExitUsage);
  std::vector<Json> reports;
  for (const std::string& file : {args[1], args[2]}) {
    absl::StatusOr<Json> json = ReadJsonFile(file);
    if (!json.ok()) return Fail(json.status(), kExitUsage);
    const absl::Status valid = CheckReport(*json, file);
    if (!valid.ok()) return Fail(valid, kExitUsage);
    reports.push_back(*std::move(json));
  }
  absl::PrintF("A: %s\nB: %s\n%s", args[1], args[2], CompareText(reports[0], reports[1]));
  if (report->empty()) return kExitOk;
  const absl::Status written = WriteFile(*report, HtmlComparison(reports[0], reports[1]));
  return written.ok() ? static_cast<int>(kExitOk) : Fail(written, kExitUsage);
}

}  // namespace

int RunBench(const std::vector<std::string>& args) {
  if (std::count(args.begin(), args.end(), "--help") > 0) {
    absl::PrintF("%s%s", kUsage, Flags::Help(BenchFlags()));
    return kExitOk;
  }
  if (std::count(args.begin(), args.end(), "--compare") > 0) return RunCompare(args);
  absl::StatusOr<Flags> flags = Flags::Parse(BenchFlags(), args);
  if (!flags.ok()) return Fail(flags.status(), kExitUsage);
  absl::StatusOr<BenchPlan> plan = BenchPlanFrom(*flags);
  if (!plan.ok()) return Fail(plan.status(), kExitUsage);
  if (!plan->report.empty()) {  // better now than after the run
    const absl::Status writable = WriteFile(plan->report, "");
    if (!writable.ok()) return Fail(writable, kExitUsage);
  }
  const absl::StatusOr<Json> report = Measure(*plan);
  if (!report.ok()) return Fail(report.status(), kExitFailed);
  if (plan->json) {
    absl::PrintF("%s\n", report->dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    absl::PrintF("%s", ReportText(*report));
  }
  if (!plan->report.empty()) {
    const absl::Status written = WriteFile(plan->report, HtmlReport(*report));
    if (!written.ok()) return Fail(written, kExitUsage);
  }
  return (*report)["failed"] == 0 ? kExitOk : kExitFailed;
}

}  // namespace asynctls
