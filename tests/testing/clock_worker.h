// SPDX-License-Identifier: Apache-2.0
// ClockWorker: a rank that does nothing, at a steady pace. Its tokens are the time at which their
// step was done, so that a reader can tell how long they took to reach it.
#pragma once

#include <memory>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/base/queue.h"
#include "engine/worker/worker.h"

namespace asynctls::testing {

class ClockWorker : public Worker {
 public:
  // At most one step in each `period`; zero = as fast as they come.
  explicit ClockWorker(absl::Duration period) : period_(period), thread_([this] { Loop(); }) {}
  ~ClockWorker() override {
    inbox_.Push({});
    thread_.join();
  }

  // Microseconds since the step that made this token; less than a second.
  static float MicrosSince(uint32_t token) {
    return static_cast<float>((Stamp() - token) % kVocab);
  }

  absl::StatusOr<v1::InitReply> Init(const v1::InitRequest&) override {
    v1::InitReply reply;
    v1::ModelInfo& model = *reply.mutable_model();
    model.set_architecture("ClockForCausalLM");
    model.set_name("clock");
    model.set_vocab_size(kVocab);
    model.set_max_context(1 << 17);
    model.set_layers(1);
    model.set_fingerprint("clock");
    reply.set_blocks(1 << 21);
    reply.set_block_positions(64);
    return reply;
  }

  void Submit(std::shared_ptr<const v1::StepPlan> plan, Done done) override {
    inbox_.Push({std::move(plan), std::move(done)});
  }

 private:
  static constexpr uint32_t kVocab = 1000000;
  struct Job {
    std::shared_ptr<const v1::StepPlan> plan;  // null = leave
    Done done;
  };

  static uint32_t Stamp() {
    return static_cast<uint32_t>(absl::ToInt64Microseconds(absl::Now() - absl::UnixEpoch()) %
                                 kVocab);
  }

  void Loop() {
    absl::Time next = absl::Now();
    while (true) {
      for (Job& job : inbox_.PopAll(absl::InfiniteFuture())) {
        if (job.plan == nullptr) return;
        absl::SleepFor(next - absl::Now());
        next = std::max(next + period_, absl::Now());
        v1::StepResult result;
        result.set_step(job.plan->step());
        const uint32_t stamp = Stamp();
        for (const v1::LaneWork& work : job.plan->work()) {
          if (!work.sample()) continue;
          v1::SampledToken& token = *result.add_sampled();
          token.set_lane(work.lane());
          token.set_token(stamp);
        }
        job.done(std::move(result));
      }
    }
  }

  const absl::Duration period_;
  Queue<Job> inbox_;
  std::thread thread_;  // last
};

}  // namespace asynctls::testing
