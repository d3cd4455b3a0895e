// SPDX-License-Identifier: Apache-2.0
// serving_bench streams | latency | share | tokenize | neighbours [flags]
// What the serving surface costs, with an engine whose steps cost nothing (ClockWorker). The client
// is a process of its own, so that CPU seconds are the server's alone. Prints each figure beside
// its baseline from the same run.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/flags.h"
#include "server/grpc/grpc_server.h"
#include "tests/bench/clocked_service.h"
#include "tests/bench/serving_clients.h"
#include "tests/testing/clock_worker.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

const std::vector<FlagSpec>& Specs() {
  static const std::vector<FlagSpec> specs = {
      {"streams", "N", "calls at the same time [1000; share and neighbours 32; latency 200]"},
      {"steps", "N", "steps a second, one token of each stream [100]"},
      {"seconds", "N", "how long to measure [5]"},
      {"rounds", "N", "neighbours: times each rate is measured [5]"},
      {"target", "HOST:PORT", "(client)"},
      {"rate", "N", "(client)"},
  };
  return specs;
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Measured {
  double tokens = 0, messages = 0, p50 = 0, p99 = 0;
  double cpu = 0;  // seconds of this process for each second of the measurement
};

// This program again, as the client `what`.
std::FILE* StartClient(
    const std::string& what, int port, int streams, int seconds, const std::string& more = "") {
  const std::string command =
      absl::StrFormat("/proc/%d/exe %s --target 127.0.0.1:%d --streams %d --seconds %d %s",
                      getpid(),
                      what,
                      port,
                      streams,
                      seconds,
                      more);
  std::FILE* client = popen(command.c_str(), "r");
  ASYNCTLS_CHECK(client != nullptr);
  return client;
}

// What it has printed; its first two numbers are counts, here of a second.
Measured ReadClient(std::FILE* client, int seconds) {
  Measured out;
  ASYNCTLS_CHECK(
      std::fscanf(client, "%lf %lf %lf %lf", &out.tokens, &out.messages, &out.p50, &out.p99) == 4);
  pclose(client);
  out.tokens /= seconds;
  out.messages /= seconds;
  return out;
}

// Runs a client; and this process' CPU time while it measures.
Measured Drive(const std::string& what, int port, int streams, int seconds) {
  std::FILE* client = StartClient(what, port, streams, seconds);
  absl::SleepFor(absl::Milliseconds(2200));
  const double cpu = CpuSeconds();
  const absl::Time begin = absl::Now();
  absl::SleepFor(absl::Seconds(seconds) - absl::Milliseconds(400));
  const double cores = (CpuSeconds() - cpu) / absl::ToDoubleSeconds(absl::Now() - begin);
  Measured out = ReadClient(client, seconds);
  out.cpu = cores;
  return out;
}

TestServer::Options ServerOptions(int streams, absl::Duration period) {
  TestServer::Options options = TestServer::Defaults();
  options.config.set_max_sequences(streams);
  options.config.set_max_step_tokens(std::max(1024, streams));
  options.config.set_max_waiting_requests(streams + 16);
  options.make_worker = [period] { return std::make_unique<ClockWorker>(period); };
  return options;
}

// Writes the same message again and again: what gRPC's callback API can do.
class EchoService final : public v1::GenerationService::CallbackService {
 public:
  class Stream final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
   public:
    Stream() {
      message_.mutable_delta()->add_token_ids(123456);
      StartWrite(&message_);
    }
    void OnWriteDone(bool ok) override {
      if (ok) {
        StartWrite(&message_);
      } else {
        Finish(grpc::Status::OK);
      }
    }
    void OnDone() override { delete this; }

   private:
    v1::GenerateResponse message_;
  };
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext*,
                                                           const v1::GenerateRequest*) override {
    return new Stream;
  }
};

void Streams(int streams, int steps, int seconds) {
  EchoService echo;
  v1::ServerConfig config = ServerOptions(streams, absl::ZeroDuration()).config;
  auto echo_server = GrpcServer::Start(config, {&echo});
  ASYNCTLS_CHECK(echo_server.ok());
  const Measured baseline = Drive("client", (*echo_server)->port(), streams, seconds);
  echo_server->reset();
  absl::PrintF("echo     %7.0f messages/s, %5.2f cores: %7.0f a second and core\n",
               baseline.messages,
               baseline.cpu,
               baseline.messages / baseline.cpu);
  TestServer server(ServerOptions(streams, absl::Seconds(1) / steps));
  const Measured ours = Drive("client", server.server().grpc_port(), streams, seconds);
  absl::PrintF(
      "asynctls %7.0f tokens/s in %.0f messages/s, asked for %d, %5.2f cores: %7.0f tokens a "
      "second "
      "and core, %.2f of echo\n",
      ours.tokens,
      ours.messages,
      streams * steps,
      ours.cpu,
      ours.tokens / ours.cpu,
      ours.tokens / ours.cpu / (baseline.messages / baseline.cpu));
}

void Latency(int streams, int steps, int seconds) {
  TestServer server(ServerOptions(streams, absl::Seconds(1) / steps));
  WriteTimes times;
  ClockedService clocked(server.server().frontend(), times);
  auto port = GrpcServer::Start(ServerOptions(streams, absl::ZeroDuration()).config, {&clocked});
  ASYNCTLS_CHECK(port.ok());
  std::FILE* client = StartClient("clock", (*port)->port(), streams, seconds);
  absl::SleepFor(absl::Milliseconds(2200));
  times.counting = true;
  absl::SleepFor(absl::Seconds(seconds) - absl::Milliseconds(400));
  times.counting = false;
  const Measured ours = ReadClient(client, seconds);
  port->reset();
  ASYNCTLS_CHECK(server.WaitIdle());
  absl::PrintF("%.0f tokens/s of %d streams\n", ours.tokens, streams);
  absl::PrintF("step done to written by the server: p50 %.0f us, p99 %.0f us\n",
               times.Quantile(0.5),
               times.Quantile(0.99));
  absl::PrintF(
      "step done to read by the client:    p50 %.0f us, p99 %.0f us\n", ours.p50, ours.p99);
}

// Tokens a second of an engine without a server: events are counted and dropped.
double EngineOnly(const TestServer::Options& options, int streams, int seconds) {
  TestServer server(options);
  std::atomic<int64_t> tokens{0};
  for (int i = 0; i < streams; ++i) {
    Request request;
    request.id = absl::StrCat(i);
    request.prompt = {1, 2, 3};
    request.max_tokens = 60000;
    request.sparse = options.config.sparse();
    request.on_event = [&](const TokenEvent& event) { tokens += event.token.has_value(); };
    ASYNCTLS_CHECK(server.engine().Submit(std::move(request)).ok());
  }
  absl::SleepFor(absl::Seconds(1));
  const int64_t before = tokens;
  absl::SleepFor(absl::Seconds(seconds));
  return static_cast<double>(tokens - before) / seconds;
}

void Share(int streams, int steps, int seconds) {
  const TestServer::Options options = ServerOptions(streams, absl::Seconds(1) / steps);
  const double alone = EngineOnly(options, streams, seconds);
  TestServer server(options);
  const Measured ours = Drive("client", server.server().grpc_port(), streams, seconds);
  absl::PrintF("engine only %.0f tokens/s, through gRPC %.0f: %.3f, %d streams, steps of %.1f ms\n",
               alone,
               ours.tokens,
               ours.tokens / alone,
               streams,
               1000.0 / steps);
}

void TokenizeCalls(int seconds) {
  TestServer server;
  const Measured ours = Drive("tokenize-client", server.server().grpc_port(), 1, seconds);
  absl::PrintF("Tokenize %.0f calls/s, %.2f cores: %.0f a second and core\n",
               ours.tokens,
               ours.cpu,
               ours.tokens / ours.cpu);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The gaps between tokens of well-formed streams, alone and beside malformed requests of every
// gRPC protocol. Server, readers and flood share the cores, hence the bounded rates.
void Neighbours(int streams, int steps, int seconds, int rounds) {
  constexpr int kRates[] = {0, 500, 2000};
  constexpr int kFloodLanes = 64;  // for what happens to be valid
  TestServer::Options options = ServerOptions(streams + kFloodLanes, absl::ZeroDuration());
  options.make_worker = nullptr;  // FakeWorker, which can do whatever may be asked
  options.fake.step_time = absl::Seconds(1) / steps;
  options.fake.blocks = 1 << 18;
  options.fake.max_lanes = streams + kFloodLanes;
  TestServer server(options);
  const int port = server.server().grpc_port();
  std::vector<double> p50[3], p99[3], ended[3];
  for (int round = 0; round < rounds; ++round) {
    for (int i = 0; i < 3; ++i) {
      std::FILE* flood = nullptr;
      if (kRates[i] > 0) {
        flood =
            StartClient("flood-client", port, 1, seconds + 2, absl::StrCat("--rate ", kRates[i]));
      }
      const Measured readers = Drive("gap-client", port, streams, seconds);
      if (flood != nullptr) ended[i].push_back(ReadClient(flood, seconds + 2).tokens);
      p50[i].push_back(readers.p50);
      p99[i].push_back(readers.p99);
    }
  }
  for (int i = 0; i < 3; ++i) {
    absl::PrintF(
        "%4d malformed requests/s (%.0f ended): gap between tokens p50 %.0f us, p99 %.0f us, %.3f "
        "of alone\n",
        kRates[i],
        kRates[i] > 0 ? Median(ended[i]) : 0.0,
        Median(p50[i]),
        Median(p99[i]),
        Median(p99[i]) / Median(p99[0]));
  }
}

int Main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  const auto flags = Flags::Parse(Specs(), {argv + std::min(2, argc), argv + argc});
  if (!flags.ok()) {
    absl::FPrintF(stderr, "%s\n", flags.status().ToString());
    return 2;
  }
  const auto number = [&](const char* name, int otherwise) {
    return static_cast<int>(flags->Whole(name, otherwise, 1, 100000).value_or(otherwise));
  };
  const int seconds = number("seconds", 5);
  const int steps = number("steps", 100);
  const std::string target = flags->Text("target");
  if (what == "client") return RunClient(target, number("streams", 1), seconds, Times::kNone);
  if (what == "clock") return RunClient(target, number("streams", 1), seconds, Times::kAge);
  if (what == "gap-client") return RunClient(target, number("streams", 1), seconds, Times::kGap);
  if (what == "flood-client") return RunFlood(target, number("rate", 500), seconds);
  if (what == "tokenize-client") return RunTokenizeClient(target, seconds);
  if (what == "streams") {
    Streams(number("streams", 1000), steps, seconds);
  } else if (what == "latency") {
    Latency(number("streams", 200), steps, seconds);
  } else if (what == "share") {
    Share(number("streams", 32), steps, seconds);
  } else if (what == "tokenize") {
    TokenizeCalls(seconds);
  } else if (what == "neighbours") {
    Neighbours(number("streams", 32), steps, seconds, number("rounds", 5));
  } else {
    absl::FPrintF(
        stderr, "usage: serving_bench streams | latency | share | tokenize | neighbours [flags]\n");
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace asynctls::testing

int main(int argc, char** argv) { return asynctls::testing::Main(argc, argv); }
