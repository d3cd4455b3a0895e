// SPDX-License-Identifier: Apache-2.0
// step_bench MODEL_DIR [--lanes N] [--context N] [--steps N] [--chunk N] [--budget N]
// [--dense-layers N]: whole steps of one rank on the GPU, with random weights of the shapes in
// MODEL_DIR/config.json, without the server. Reads N prompts of random tokens (the first token's
// time), then decodes them densely and sparsely in turns, all lanes in every step, and prints the
// median step of each beside what its weights and KV would take at the machine's read bandwidth,
// and a digest of the tokens. Steps are sent as the engine sends them to a GPU, the next one while
// one runs; a step's time is from the result before it to its own.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/kv/kv_layout.h"
#include "engine/worker/make_cuda_worker.h"
#include "kernels/device/splitmix.h"
#include "kernels/ops.h"

namespace asynctls {
namespace {

struct Flags {
  std::string model;
  uint32_t lanes = 1, context = 65536, steps = 60, chunk = 8192, budget = 1024;
  uint32_t dense_layers = 2;
};

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

class Driver {
 public:
  Driver(Worker& worker, const Flags& flags) : worker_(worker), flags_(flags) {}

  // Drops the lane and starts it again on the same blocks, `length` positions being there.
  void Start(uint32_t lane, v1::AttentionMode mode, bool release) {
    if (release) plan_.add_released_lanes(lane);
    v1::LaneStart* start = plan_.add_starts();
    start->set_lane(lane);
    start->mutable_sampling()->set_top_p(1);
    start->mutable_sparse()->set_mode(mode);
    start->mutable_sparse()->set_selector(v1::SELECTOR_CODE);
    start->mutable_sparse()->set_budget(flags_.budget);
    start->mutable_sparse()->set_blocks(64);
  }
  void Add(uint32_t lane,
           uint32_t position,
           uint32_t first_new_block,
           const std::vector<uint32_t>& tokens,
           bool decode,
           bool sample) {
    v1::LaneWork* work = plan_.add_work();
    work->set_lane(lane);
    work->set_start(position);
    work->set_count(decode ? 1 : static_cast<uint32_t>(tokens.size()));
    work->set_decode(decode);
    work->set_sample(sample);
    const int64_t end = position + work->count();
    for (int64_t b = first_new_block; b < BlocksFor(end); ++b) {
      work->add_new_blocks(static_cast<uint32_t>(lane * BlocksPerLane() + b));
    }
    for (const uint32_t token : tokens) work->add_tokens(token);
  }
  // Sends the step that has been put together.
  void Send() {
    plan_.set_step(++step_);
    auto plan = std::make_shared<v1::StepPlan>();
    plan->Swap(&plan_);
    std::promise<Answer> done;
    sent_.push_back(done.get_future());
    worker_.Submit(plan, [done = std::move(done)](absl::StatusOr<v1::StepResult> result) mutable {
      done.set_value({std::move(result), std::chrono::steady_clock::now()});
    });
  }
  // Waits for the oldest step that was sent. When its result came.
  std::chrono::steady_clock::time_point Receive() {
    const Answer answer = sent_.front().get();
    sent_.pop_front();
    if (!answer.result.ok()) {
      std::fprintf(stderr, "%s\n", answer.result.status().ToString().c_str());
      std::exit(1);
    }
    for (const auto& sampled : answer.result->sampled()) {
      digest_ = SplitMix64(digest_ ^ static_cast<uint64_t>(sampled.token()));
      digest_ = SplitMix64(digest_ ^ std::bit_cast<uint32_t>(sampled.log_prob()));
    }
    return answer.time;
  }
  // Steps that were sent and not received.
  size_t under_way() const { return sent_.size(); }
  // Of all tokens sampled so far and their log-probabilities: two builds that agree in it agree in
  // every step.
  uint64_t digest() const { return digest_; }
  int64_t BlocksPerLane() const { return BlocksFor(flags_.context + 4 * flags_.steps + 64); }

 private:
  struct Answer {
    absl::StatusOr<v1::StepResult> result;
    std::chrono::steady_clock::time_point time;
  };

  Worker& worker_;
  const Flags flags_;
  v1::StepPlan plan_;
  std::deque<std::future<Answer>> sent_;
  uint64_t step_ = 0;
  uint64_t digest_ = 0;
};

// Decodes all lanes for so many steps, `length` positions of each being there, which it counts up.
// Seconds of each step but the first few.
std::vector<double> Decode(Driver& driver,
                           const Flags& f,
                           v1::AttentionMode mode,
                           const std::vector<uint32_t>& prompt,
                           uint32_t& length) {
  constexpr uint32_t kWarmUp = 5;
  constexpr size_t kUnderWay = 2;
  std::vector<double> times;
  std::chrono::steady_clock::time_point last;
  uint32_t received = 0;
  const auto receive = [&] {
    const auto time = driver.Receive();
    if (received++ >= kWarmUp) {
      times.push_back(std::chrono::duration<double>(time - last).count());
    }
    last = time;
  };
  for (uint32_t step = 0; step < f.steps; ++step, ++length) {
    const bool first = step == 0;
    for (uint32_t lane = 0; lane < f.lanes; ++lane) {
      if (first) driver.Start(lane, mode, true);
      driver.Add(lane,
                 length,
                 first ? 0 : static_cast<uint32_t>(BlocksFor(length)),
                 first ? std::vector<uint32_t>{prompt[lane]} : std::vector<uint32_t>{},
                 true,
                 true);
    }
    driver.Send();
    if (driver.under_way() == kUnderWay) receive();
  }
  while (driver.under_way() > 0) receive();
  return times;
}

double Median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + static_cast<int64_t>(x.size() / 2), x.end());
  return x[x.size() / 2];
}

int Main(int argc, char** argv) {
  Flags f;
  for (int i = 1; i < argc; ++i) {
    const auto number = [&] { return static_cast<uint32_t>(std::atoi(argv[++i])); };
    if (std::strcmp(argv[i], "--lanes") == 0) {
      f.lanes = number();
    } else if (std::strcmp(argv[i], "--context") == 0) {
      f.context = number();
    } else if (std::strcmp(argv[i], "--steps") == 0) {
      f.steps = number();
    } else if (std::strcmp(argv[i], "--chunk") == 0) {
      f.chunk = number();
    } else if (std::strcmp(argv[i], "--budget") == 0) {
      f.budget = number();
    } else if (std::strcmp(argv[i], "--dense-layers") == 0) {
      f.dense_layers = number();
    } else {
      f.model = argv[i];
    }
  }
  const absl::Status gpus = CheckGpus(1);
  if (f.model.empty() || !gpus.ok()) {
    std::fprintf(stderr, "step_bench MODEL_DIR [flags]; %s\n", gpus.ToString().c_str());
    return 1;
  }
  const std::unique_ptr<Worker> worker = MakeCudaWorker();
  Driver driver(*worker, f);
  v1::InitRequest init;
  init.set_model_dir(f.model);
  init.set_weights(v1::WEIGHT_SOURCE_SYNTHETIC);
  init.set_ranks(1);
  init.set_threads(8);
  init.set_max_lanes(f.lanes);
  init.set_max_step_tokens(std::max(f.chunk, f.lanes));
  init.set_max_context(f.context + 4 * f.steps + 64);
  init.set_max_budget(2048);
  init.set_dense_layers(f.dense_layers);
  std::mt19937 random(7);
  std::vector<uint32_t> prompt(f.context);
  for (uint32_t& token : prompt) token = random() % 100000;
  for (uint32_t i = 0; i < 512; ++i) init.add_calibration_tokens(prompt[i % f.context]);
  const absl::StatusOr<v1::InitReply> reply = worker->Init(init);
  if (!reply.ok()) {
    std::fprintf(stderr, "%s\n", reply.status().ToString().c_str());
    return 1;
  }
  std::printf("%s\n", reply->device().c_str());
  for (const auto& m : reply->memory()) {
    std::printf(
        "  %-28s %9.2f GiB\n", m.what().c_str(), static_cast<double>(m.bytes()) / (1 << 30));
  }
  for (const auto& p : reply->startup())
    std::printf("  %-28s %9.2f s\n", p.name().c_str(), p.seconds());

  std::vector<double> first_token;
  for (uint32_t lane = 0; lane < f.lanes; ++lane) {
    driver.Start(lane, v1::ATTENTION_MODE_DENSE, false);
    const auto begin = std::chrono::steady_clock::now();
    for (uint32_t at = 0; at < f.context; at += f.chunk) {
      const uint32_t count = std::min(f.chunk, f.context - at);
      driver.Add(lane,
                 at,
                 static_cast<uint32_t>(BlocksFor(at)),
                 {prompt.begin() + at, prompt.begin() + at + count},
                 false,
                 at + count == f.context);
      driver.Send();
      driver.Receive();
    }
    first_token.push_back(Seconds(begin));
  }
  std::printf("prompt of %u: first token after %.3f s (median of %u)\n",
              f.context,
              Median(first_token),
              f.lanes);

  uint32_t length = f.context;
  std::vector<double> medians[2];
  for (int round = 0; round < 2; ++round) {
    for (const auto mode : {v1::ATTENTION_MODE_DENSE, v1::ATTENTION_MODE_EXACT}) {
      medians[mode == v1::ATTENTION_MODE_EXACT].push_back(
          Median(Decode(driver, f, mode, prompt, length)));
    }
  }
  const double dense = *std::min_element(medians[0].begin(), medians[0].end());
  const double sparse = *std::min_element(medians[1].begin(), medians[1].end());
  const double weights = static_cast<double>(reply->memory(0).bytes());
  const double kv = static_cast<double>(reply->kv_bytes_per_token()) * f.lanes * f.context;
  std::printf(
      "%u x %u: dense step %.3f ms (limit %.3f at 4.5 TB/s), sparse %.3f ms (%u layers dense), "
      "ratio %.2f\n",
      f.lanes,
      f.context,
      dense * 1e3,
      (weights + kv) / 4.5e9,
      sparse * 1e3,
      f.dense_layers,
      dense / sparse);
  std::printf("digest of the tokens: %016llx\n", static_cast<unsigned long long>(driver.digest()));
  return 0;
}

}  // namespace
}  // namespace asynctls

int main(int argc, char** argv) { return asynctls::Main(argc, argv); }
