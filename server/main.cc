// SPDX-License-Identifier: Apache-2.0
// asynctls-server: configuration, tokenizer, workers, engine, service, ports; then waits for a
// signal. Exit code: 0 after a drain, 1 when it could not start or the workers died, 2 bad usage.
#include <csignal>
#include <ctime>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/host_port.h"
#include "engine/base/json.h"
#include "engine/base/logging.h"
#include "engine/engine.h"
#include "engine/metrics/metrics.h"
#include "engine/parallel/gloo_communicator.h"
#include "engine/text/tokenizer.h"
#include "engine/worker/make_cpu_worker.h"
#include "engine/worker/make_cuda_worker.h"
#include "engine/worker/worker_group.h"
#include "server/config.h"
#include "server/server.h"
#include "server/startup.h"

namespace asynctls {
namespace {

namespace fs = std::filesystem;

constexpr char kUsage[] =
    "usage: asynctls-server --model DIR [flags]\n"
    "SIGTERM or SIGINT drains; a second one ends at once.\n\n";

// The bundled calibration text: installed beside the program, or beside the model.
std::string FindCalibrationText(const std::string& model) {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  for (const fs::path& path : {program.parent_path() / "../share/asynctls/calibration.txt",
                               fs::path(model) / "calibration.txt",
                               fs::path(model) / "../calibration.txt"}) {
    if (fs::is_regular_file(path, error)) return path.string();
  }
  return "";
}

// Ids of the calibration text; none without a text (the workers say so if they need it).
absl::StatusOr<std::vector<uint32_t>> CalibrationTokens(const std::string& model,
                                                        const Tokenizer& tokenizer) {
  const std::string path = FindCalibrationText(model);
  if (path.empty()) return std::vector<uint32_t>();
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  return tokenizer.Encode(*text, /*parse_special=*/false);
}

struct Workers {
  std::string device;
  std::unique_ptr<WorkerGroup> group;
  v1::InitReply init;
};

absl::StatusOr<Workers> StartWorkers(const v1::ServerConfig& config, const Tokenizer& tokenizer) {
  absl::StatusOr<std::vector<uint32_t>> calibration = CalibrationTokens(config.model(), tokenizer);
  if (!calibration.ok()) return calibration.status();
  std::string rendezvous;
  if (config.tensor_parallel() > 1) {
    absl::StatusOr<std::string> made = GlooCommunicator::MakeRendezvous();
    if (!made.ok()) return made.status();
    rendezvous = *std::move(made);
  }
  Workers out;
  out.device = DeviceFor(config, GpuCount());
  if (out.device == "cuda") {
    const absl::Status found = CheckGpus(static_cast<int>(config.tensor_parallel()));
    if (!found.ok()) return found;
  }
  std::vector<std::unique_ptr<Worker>> ranks;
  for (uint32_t i = 0; i < config.tensor_parallel(); ++i) {
    ranks.push_back(out.device == "cuda" ? MakeCudaWorker() : MakeCpuWorker());
  }
  out.group = std::make_unique<WorkerGroup>(std::move(ranks));
  const uint32_t cores = std::max(1u, std::thread::hardware_concurrency());
  absl::StatusOr<v1::InitReply> init = out.group->Init(
      InitRequestFrom(config, out.device, cores, rendezvous, *calibration, tokenizer.vocab_size()));
  if (!init.ok()) return init.status();
  out.init = *std::move(init);
  return out;
}

// Blocks the signals in this thread and all it will start.
sigset_t BlockSignals() {
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

bool WaitSecond(const sigset_t& signals) {
  const timespec second = {1, 0};
  return sigtimedwait(&signals, nullptr, &second) > 0;
}

// While the workers start, which may take minutes, a signal ends the process at once.
class StartupWatch {
 public:
  explicit StartupWatch(const sigset_t& signals)
      : thread_([this, signals] {
          const timespec tick = {0, 50'000'000};
          while (!over_) {
            if (sigtimedwait(&signals, nullptr, &tick) > 0) std::_Exit(1);
          }
        }) {}
  ~StartupWatch() {
    over_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> over_{false};
  std::thread thread_;
};

absl::StatusOr<Workers> StartWatched(const v1::ServerConfig& config,
                                     const Tokenizer& tokenizer,
                                     const sigset_t& signals) {
  StartupWatch watch(signals);
  return StartWorkers(config, tokenizer);
}

// Until a signal has come and the drain is over, or the engine is dead. Returns the exit code.
int Serve(Server& server, absl::Duration drain_limit, const sigset_t& signals) {
  while (!WaitSecond(signals)) {
    if (server.UpdateHealth()) continue;
    spdlog::critical("the workers have failed; exiting so that all ranks start afresh");
    server.Drain(absl::ZeroDuration());
    return 1;
  }
  std::atomic<bool> drained = false;
  std::thread drain([&] {
    server.Drain(drain_limit);
    drained = true;
  });
  while (!drained) {
    if (!WaitSecond(signals)) continue;
    spdlog::warn("second signal: ending at once");
    std::_Exit(1);
  }
  drain.join();
  return 0;
}

void PrintPort(const char* what, const std::string& listen, int port) {
  absl::PrintF("%s %s\n", what, WithPort(listen, port));
}

absl::StatusOr<int> Run(const v1::ServerConfig& config) {
  const sigset_t signals = BlockSignals();
  auto registry = std::make_shared<prometheus::Registry>();
  Metrics metrics(*registry);
  std::unique_ptr<Tokenizer> tokenizer;  // these two outlive the server
  std::unique_ptr<Engine> engine;
  auto server = Server::Start(config, metrics, registry);
  if (!server.ok()) return server.status();

  auto loaded = Tokenizer::Load((fs::path(config.model()) / "tokenizer.json").string());
  if (!loaded.ok()) return loaded.status();
  tokenizer = *std::move(loaded);
  absl::StatusOr<Workers> workers = StartWatched(config, *tokenizer, signals);
  if (!workers.ok()) return workers.status();
  std::fputs(StartupTable(workers->init).c_str(), stderr);
  for (const v1::InitReply::Phase& phase : workers->init.startup()) {
    metrics.SetStartup(phase.name(), phase.seconds());
  }
  engine = std::make_unique<Engine>(SchedulerConfigFrom(config, workers->device, workers->init),
                                    std::move(workers->group),
                                    metrics);
  (*server)->Open(
      FrontendOptionsFrom(config, workers->init, tokenizer->vocab_size()), *engine, *tokenizer);
  if ((*server)->metrics_port() > 0) {
    PrintPort("metrics on", config.metrics_listen(), (*server)->metrics_port());
  }
  if ((*server)->http_port() > 0) {
    PrintPort("http on", config.http_listen(), (*server)->http_port());
  }
  PrintPort("asynctls-server listening on", config.listen(), (*server)->grpc_port());
  std::fflush(stdout);
  return Serve(**server, absl::Seconds(config.drain_seconds()), signals);
}

int Main(const std::vector<std::string>& args) {
  if (std::count(args.begin(), args.end(), "--help") > 0) {
    absl::PrintF("%s%s", kUsage, ConfigHelp());
    return 0;
  }
  if (std::count(args.begin(), args.end(), "--version") > 0) {
    absl::PrintF("asynctls-server %s\n", ServerVersion());
    return 0;
  }
  const absl::StatusOr<v1::ServerConfig> config = LoadConfig(args);
  absl::Status status = config.status();
  if (status.ok()) status = InitLogging(config->log_level());
  if (!status.ok()) {
    absl::FPrintF(stderr, "asynctls-server: %s\n--help lists the flags\n", status.message());
    return 2;
  }
  const absl::StatusOr<int> code = Run(*config);
  if (code.ok()) return *code;
  absl::FPrintF(stderr, "asynctls-server: %s\n", code.status().ToString());
  return 1;
}

}  // namespace
}  // namespace asynctls

int main(int argc, char** argv) {
  return asynctls::Main(std::vector<std::string>(argv + 1, argv + argc));
}
