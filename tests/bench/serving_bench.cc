// SPDX-License-Identifier: Apache-2.0
// serving_bench streams | latency | share | tokenize [flags]
// What the serving surface costs, with an engine whose steps cost nothing (ClockWorker). The client
// is a process of its own, so that CPU seconds are the server's alone. Prints each figure beside
// its baseline from the same run.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/flags.h"
#include "server/grpc/grpc_server.h"
#include "tests/testing/clock_worker.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

const std::vector<FlagSpec>& Specs() {
  static const std::vector<FlagSpec> specs = {
      {"streams", "N", "calls at the same time [1000; share 32; latency 200]"},
      {"steps", "N", "steps a second, one token of each stream [100]"},
      {"seconds", "N", "how long to measure [5]"},
      {"target", "HOST:PORT", "(client)"},
  };
  return specs;
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// ------------------------------------------------------------------------------------ the client
// --

struct ClientCounts {
  std::atomic<bool> counting{false};
  std::atomic<int64_t> tokens{0}, messages{0};
  std::mutex mu;
  std::vector<float> latencies_us;  // guarded by mu
};

class StreamReader final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  StreamReader(v1::GenerationService::Stub& stub, ClientCounts& counts, bool clock)
      : counts_(counts), clock_(clock) {
    request_ = IdsRequest({1, 2, 3}, 60000);
    request_.mutable_response()->set_text(false);
    stub.async()->Generate(&context_, &request_, this);
    StartRead(&message_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (counts_.counting && message_.has_delta()) {
      ++counts_.messages;
      counts_.tokens += message_.delta().token_ids_size();
      if (clock_) {
        std::lock_guard lock(counts_.mu);
        for (uint32_t stamp : message_.delta().token_ids()) {
          counts_.latencies_us.push_back(ClockWorker::MicrosSince(stamp));
        }
      }
    }
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override {
    std::lock_guard lock(mu_);
    status_ = status;
    done_ = true;
    ended_.notify_all();
  }
  void Stop() {
    context_.TryCancel();
    std::unique_lock lock(mu_);
    ended_.wait(lock, [this] { return done_; });
  }

 private:
  ClientCounts& counts_;
  const bool clock_;
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  v1::GenerateResponse message_;
  std::mutex mu_;
  std::condition_variable ended_;
  bool done_ = false;
  grpc::Status status_;
};

std::vector<std::unique_ptr<v1::GenerationService::Stub>> Stubs(const std::string& target) {
  std::vector<std::unique_ptr<v1::GenerationService::Stub>> stubs;
  for (int i = 0; i < 8; ++i) {
    grpc::ChannelArguments args;
    args.SetInt("connection", i);  // or channels share one connection
    stubs.push_back(v1::GenerationService::NewStub(
        grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), args)));
  }
  return stubs;
}

// Prints "tokens messages p50 p99" for `seconds` of reading, after as much as two seconds.
int RunClient(const std::string& target, int streams, int seconds, bool clock) {
  const auto stubs = Stubs(target);
  ClientCounts counts;
  std::vector<std::unique_ptr<StreamReader>> readers;
  for (int i = 0; i < streams; ++i) {
    readers.push_back(std::make_unique<StreamReader>(*stubs[i % stubs.size()], counts, clock));
  }
  absl::SleepFor(absl::Seconds(2));
  counts.counting = true;
  absl::SleepFor(absl::Seconds(seconds));
  counts.counting = false;
  std::lock_guard lock(counts.mu);
  std::vector<float>& sorted = counts.latencies_us;
  std::sort(sorted.begin(), sorted.end());
  const auto at = [&](double q) { return sorted.empty() ? 0 : sorted[q * (sorted.size() - 1)]; };
  absl::PrintF("%d %d %f %f\n", counts.tokens.load(), counts.messages.load(), at(0.5), at(0.99));
  std::fflush(stdout);
  _exit(0);  // the server notices
}

int RunTokenizeClient(const std::string& target, int seconds) {
  const auto stubs = Stubs(target);
  std::atomic<int64_t> calls{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (const auto& stub : stubs) {
    threads.emplace_back([&] {
      v1::TokenizeRequest request;
      request.set_text("How many tokens is this? A short question, as chat clients ask it.");
      while (!stop) {
        grpc::ClientContext context;
        v1::TokenizeResponse response;
        calls += stub->Tokenize(&context, request, &response).ok();
      }
    });
  }
  absl::SleepFor(absl::Seconds(2));
  const int64_t before = calls;
  absl::SleepFor(absl::Seconds(seconds));
  absl::PrintF("%d %d 0 0\n", calls - before, calls - before);
  std::fflush(stdout);
  _exit(0);
}

// ------------------------------------------------------------------------------------ the server
// --

struct Measured {
  double tokens = 0, messages = 0, p50 = 0, p99 = 0;
  double cpu = 0;  // seconds of this process for each second of the measurement
};

// This program again, as the client `what`; and this process' CPU time while it measures.
Measured Drive(const std::string& what, int port, int streams, int seconds) {
  const std::string command =
      absl::StrFormat("/proc/%d/exe %s --target 127.0.0.1:%d --streams %d --seconds %d",
                      getpid(),
                      what,
                      port,
                      streams,
                      seconds);
  std::FILE* client = popen(command.c_str(), "r");
  ASYNCTLS_CHECK(client != nullptr);
  absl::SleepFor(absl::Milliseconds(2200));
  const double cpu = CpuSeconds();
  const absl::Time begin = absl::Now();
  absl::SleepFor(absl::Seconds(seconds) - absl::Milliseconds(400));
  Measured out;
  out.cpu = (CpuSeconds() - cpu) / absl::ToDoubleSeconds(absl::Now() - begin);
  ASYNCTLS_CHECK(
      std::fscanf(client, "%lf %lf %lf %lf", &out.tokens, &out.messages, &out.p50, &out.p99) == 4);
  pclose(client);
  out.tokens /= seconds;
  out.messages /= seconds;
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
  const Measured ours = Drive("clock", server.server().grpc_port(), streams, seconds);
  absl::PrintF(
      "step done to client's read: p50 %.0f us, p99 %.0f us at %.0f tokens/s of %d streams\n",
      ours.p50,
      ours.p99,
      ours.tokens,
      streams);
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
  if (what == "client") return RunClient(target, number("streams", 1), seconds, false);
  if (what == "clock") return RunClient(target, number("streams", 1), seconds, true);
  if (what == "tokenize-client") return RunTokenizeClient(target, seconds);
  if (what == "streams") {
    Streams(number("streams", 1000), steps, seconds);
  } else if (what == "latency") {
    Latency(number("streams", 200), steps, seconds);
  } else if (what == "share") {
    Share(number("streams", 32), steps, seconds);
  } else if (what == "tokenize") {
    TokenizeCalls(seconds);
  } else {
    absl::FPrintF(stderr, "usage: serving_bench streams | latency | share | tokenize [flags]\n");
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace asynctls::testing

int main(int argc, char** argv) { return asynctls::testing::Main(argc, argv); }
