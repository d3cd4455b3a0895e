// SPDX-License-Identifier: Apache-2.0
// load_soak [--minutes N] [--streams N] [--cancel-percent N] [--max-prompt N] [--max-tokens N]
//           [--target HOST:PORT [--pid SERVER]]
// Minutes of streams with cancels, against a server in this process (FakeWorker) or a running one.
// Prints memory every ten seconds; at the end the slope of memory, terminal records and blocks in
// use. Exit code 0: every request had exactly one end and no block stayed.
#include <malloc.h>

#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/flags.h"
#include "tests/testing/load.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

const std::vector<FlagSpec>& Specs() {
  static const std::vector<FlagSpec> specs = {
      {"minutes", "N", "how long [3]"},
      {"streams", "N", "calls at the same time [32]"},
      {"cancel-percent", "N", "calls that are cancelled [20]"},
      {"max-prompt", "N", "longest prompt, tokens [2000]"},
      {"max-tokens", "N", "longest reply [200]"},
      {"target", "HOST:PORT", "a running server"},
      {"pid", "N", "its process, for its memory"},
  };
  return specs;
}

// Resident memory in KiB of /proc/<process>.
double ResidentKib(const std::string& process) {
  std::FILE* file = std::fopen(("/proc/" + process + "/statm").c_str(), "r");
  if (file == nullptr) return 0;
  long total = 0, resident = 0;
  const int read = std::fscanf(file, "%ld %ld", &total, &resident);
  std::fclose(file);
  return read == 2 ? resident * 4.0 : 0;
}

// Bytes this process has allocated and not freed, in KiB.
double HeapKib() { return static_cast<double>(mallinfo2().uordblks) / 1024; }

// Least squares of the second half: the first fills caches and pools.
double SlopePerSample(const std::vector<double>& samples) {
  const size_t first = samples.size() / 2;
  const double n = static_cast<double>(samples.size() - first);
  double x = 0, y = 0, xx = 0, xy = 0;
  for (size_t i = first; i < samples.size(); ++i) {
    const double at = static_cast<double>(i - first);
    x += at;
    y += samples[i];
    xx += at * at;
    xy += at * samples[i];
  }
  const double spread = n * xx - x * x;
  return spread > 0 ? (n * xy - x * y) / spread : 0;
}

int Soak(const Flags& flags) {
  constexpr absl::Duration kEvery = absl::Seconds(10);
  LoadOptions load;
  load.duration = absl::Minutes(*flags.Whole("minutes", 3, 1, 100000000));
  load.streams = static_cast<int>(*flags.Whole("streams", 32, 1, 100000000));
  load.cancel_percent = static_cast<int>(*flags.Whole("cancel-percent", 20, 1, 100000000));
  load.max_prompt = static_cast<uint32_t>(*flags.Whole("max-prompt", 2000, 1, 100000000));
  load.max_tokens = static_cast<uint32_t>(*flags.Whole("max-tokens", 200, 1, 100000000));

  std::unique_ptr<TestServer> local;
  std::unique_ptr<v1::GenerationService::Stub> stub;
  if (flags.has("target")) {
    stub = v1::GenerationService::NewStub(
        grpc::CreateChannel(flags.Text("target"), grpc::InsecureChannelCredentials()));
  } else {
    TestServer::Options options = TestServer::Defaults();
    options.fake.step_time = absl::Microseconds(500);
    local = std::make_unique<TestServer>(options);
    stub = v1::GenerationService::NewStub(local->channel());
  }
  const std::string process = flags.Text("pid", "self");

  LoadCounts counts;
  std::atomic<bool> over = false;
  std::thread runner([&] {
    RunLoad(*stub, load, counts);
    over = true;
  });
  std::vector<double> resident, heap;  // KiB
  absl::Time next = absl::Now();
  while (!over) {
    absl::SleepFor(absl::Milliseconds(100));
    if (absl::Now() < next) continue;
    next += kEvery;
    resident.push_back(ResidentKib(process));
    heap.push_back(HeapKib());
    absl::PrintF(
        "begun %d finished %d cancelled %d other %d tokens %d, memory %.1f MiB, heap %.2f\n",
        counts.begun.load(),
        counts.finished.load() + counts.outrun.load(),
        counts.cancelled.load(),
        counts.other.load(),
        counts.tokens.load(),
        resident.back() / 1024,
        heap.back() / 1024);
    std::fflush(stdout);
  }
  runner.join();

  bool blocks_free = true;
  if (local != nullptr) {
    blocks_free = local->WaitIdle();
    local->server().Drain(absl::Seconds(10));
    absl::PrintF("blocks in use after drain: %d\n", local->engine().snapshot().blocks_used);
  }
  absl::PrintF(
      "requests %d, terminal records %d, faults %d; KiB/minute: memory %+.1f, heap %+.1f\n",
      counts.begun.load(),
      counts.ended(),
      counts.other.load(),
      SlopePerSample(resident) * (absl::Minutes(1) / kEvery),
      SlopePerSample(heap) * (absl::Minutes(1) / kEvery));
  return counts.other == 0 && counts.ended() == counts.begun && blocks_free ? 0 : 1;
}

int Main(const std::vector<std::string>& args) {
  const absl::StatusOr<Flags> flags = Flags::Parse(Specs(), args);
  absl::Status status = flags.status();
  if (status.ok()) {
    for (const FlagSpec& spec : Specs()) {
      if (spec.placeholder == "N") status.Update(flags->Whole(spec.name, 1, 1, 100000000).status());
    }
  }
  if (!status.ok()) {
    absl::FPrintF(stderr, "%s\n%s", status.ToString(), Flags::Help(Specs()));
    return 2;
  }
  return Soak(*flags);
}

}  // namespace
}  // namespace asynctls::testing

int main(int argc, char** argv) {
  return asynctls::testing::Main(std::vector<std::string>(argv + 1, argv + argc));
}
