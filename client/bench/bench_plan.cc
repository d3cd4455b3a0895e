// SPDX-License-Identifier: Apache-2.0
#include "client/bench/bench_plan.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/request_fields.h"

namespace asynctls {
namespace {

// Values above 0, by name: absent flags leave the default.
struct Reals {
  const char* name;
  double* value;
  double min, max;
};

absl::Status SetReals(const Flags& flags, const std::vector<Reals>& reals) {
  for (const Reals& real : reals) {
    const absl::StatusOr<double> value = flags.Real(real.name, *real.value, real.min, real.max);
    if (!value.ok()) return value.status();
    *real.value = *value;
  }
  return absl::OkStatus();
}

absl::Status SetLength(const Flags& flags, const char* name, LengthSpec& spec) {
  if (!flags.has(name)) return absl::OkStatus();
  const absl::StatusOr<LengthSpec> parsed = LengthSpec::Parse(flags.Text(name));
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--", name, ": ", parsed.status().message()));
  }
  spec = *parsed;
  return absl::OkStatus();
}

absl::Status SetWorkload(const Flags& flags, WorkloadOptions& workload) {
  absl::Status status = SetLength(flags, "prompt-tokens", workload.prompt_tokens);
  if (status.ok()) status = SetLength(flags, "max-tokens", workload.max_tokens);
  if (!status.ok()) return status;
  const auto prefix = flags.Whole("shared-prefix-tokens", 0, 0, 1 << 24);
  const auto prefixes = flags.Whole("shared-prefixes", 1, 1, 1 << 16);
  const auto seed = flags.Whole("seed", 0, 0, UINT64_MAX);
  for (const auto& number : {prefix, prefixes, seed}) {
    if (!number.ok()) return number.status();
  }
  workload.shared_prefix_tokens = static_cast<uint32_t>(*prefix);
  workload.shared_prefixes = static_cast<uint32_t>(*prefixes);
  workload.seed = *seed;
  status = SetReals(flags,
                    {{"cancel-fraction", &workload.cancel_fraction, 0, 1},
                     {"slow-fraction", &workload.slow_fraction, 0, 1},
                     {"deadline-fraction", &workload.deadline_fraction, 0, 1},
                     {"malformed-fraction", &workload.malformed_fraction, 0, 1}});
  workload.base.mutable_sampling()->set_temperature(0);
  for (const char* field : {"mode", "selector", "budget", "blocks", "tail", "temperature"}) {
    if (!status.ok() || !flags.has(field)) continue;
    status = SetRequestField(field, flags.Text(field), workload.base);
    if (!status.ok()) status = absl::InvalidArgumentError(absl::StrCat("--", status.message()));
  }
  if (!status.ok()) return status;
  WorkloadOptions checked = workload;
  checked.vocab = 1;  // not known yet
  return Workload::Make(std::move(checked)).status();
}

absl::Status SetRun(const Flags& flags, RunOptions& run) {
  run.target = flags.Text("target");
  if (flags.has("concurrency") == flags.has("rate")) {
    return absl::InvalidArgumentError("exactly one of --concurrency and --rate is required");
  }
  if (!flags.has("num-requests") && !flags.has("duration")) {
    return absl::InvalidArgumentError("one of --num-requests and --duration is required");
  }
  if (flags.has("burstiness") && !flags.has("rate")) {
    return absl::InvalidArgumentError("--burstiness goes with --rate");
  }
  const auto connections = flags.Whole("connections", 1, 1, 1024);
  const auto concurrency = flags.Whole("concurrency", 0, 1, 100000);
  const auto requests = flags.Whole("num-requests", UINT64_MAX, 1, UINT64_MAX);
  const auto warmup = flags.Whole("warmup", 0, 0, 1 << 20);
  const auto seed = flags.Whole("seed", 0, 0, UINT64_MAX);
  for (const auto& number : {connections, concurrency, requests, warmup, seed}) {
    if (!number.ok()) return number.status();
  }
  run.connections = static_cast<int>(*connections);
  run.concurrency = static_cast<uint32_t>(*concurrency);
  run.num_requests = *requests;
  run.warmup = static_cast<uint32_t>(*warmup);
  run.seed = *seed;
  double duration = 0, timeout = 0, deadline = 1, slow_ms = 50;
  const absl::Status status = SetReals(flags,
                                       {{"rate", &run.rate, 1e-3, 1e6},
                                        {"burstiness", &run.burstiness, 1e-3, 1e3},
                                        {"duration", &duration, 1e-3, 1e6},
                                        {"timeout", &timeout, 1e-3, 1e6},
                                        {"deadline-seconds", &deadline, 1e-3, 1e6},
                                        {"slow-delay", &slow_ms, 0, 1e6}});
  if (duration > 0) run.duration = absl::Seconds(duration);
  if (timeout > 0) run.timeout = absl::Seconds(timeout);
  run.deadline = absl::Seconds(deadline);
  run.slow_delay = absl::Milliseconds(slow_ms);
  return status;
}

}  // namespace

const std::vector<FlagSpec>& BenchFlags() {
  static const std::vector<FlagSpec> specs = {
      {"target", "HOST:PORT", "the server"},
      {"concurrency", "N", "closed loop: so many requests at a time"},
      {"rate", "R", "open loop: so many requests sent per second"},
      {"burstiness", "X", "1 = Poisson, below: bursts, above: more even [1]"},
      {"num-requests", "N", "how many are sent"},
      {"duration", "S", "stop sending after so many seconds"},
      {"warmup", "N", "requests before, not measured [0]"},
      {"connections", "N", "requests take them in turn [1]"},
      {"prompt-tokens", "LENGTH", "N, MIN:MAX or lognormal:MEDIAN:SIGMA:MAX [128]"},
      {"max-tokens", "LENGTH", "of the replies, as above [64]"},
      {"shared-prefix-tokens", "N", "in front of every prompt [0]"},
      {"shared-prefixes", "N", "how many different ones [1]"},
      {"mode", "M", "dense, exact or lagged (the server's default)"},
      {"selector", "S", "code or bound"},
      {"budget", "N", "tokens attended per KV head"},
      {"blocks", "N", "blocks kept by the first level"},
      {"tail", "N", "last prompt tokens that go through the decode path"},
      {"temperature", "X", "[0]"},
      {"cancel-fraction", "X", "of the requests are cancelled at a random token [0]"},
      {"slow-fraction", "X", "of the requests are read slowly [0]"},
      {"slow-delay", "MS", "after each message of those [50]"},
      {"deadline-fraction", "X", "of the requests have a deadline [0]"},
      {"deadline-seconds", "S", "of those [1]"},
      {"malformed-fraction", "X", "of the requests must be refused [0]"},
      {"timeout", "S", "of all other requests [none]"},
      {"goodput", "LIMITS", "ttft:MS,tpot:MS,e2e:MS, any of them"},
      {"seed", "N", "same seed, same requests [0]"},
      {"json", "", "one JSON object instead of tables"},
      {"report", "F.html", "also write a report with plots"},
  };
  return specs;
}

absl::StatusOr<BenchPlan> BenchPlanFrom(const Flags& flags) {
  absl::Status status = flags.Require({"target"});
  BenchPlan plan;
  if (status.ok()) status = SetRun(flags, plan.run);
  if (status.ok()) status = SetWorkload(flags, plan.workload);
  if (!status.ok()) return status;
  if (flags.has("goodput")) {
    const absl::StatusOr<GoodputLimits> limits = GoodputLimits::Parse(flags.Text("goodput"));
    if (!limits.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--goodput: ", limits.status().message()));
    }
    plan.goodput = *limits;
  }
  plan.report = flags.Text("report");
  plan.json = flags.has("json");
  plan.flags = Json::object();
  for (const std::string& name : flags.names()) plan.flags[name] = flags.Text(name);
  return plan;
}

}  // namespace asynctls
