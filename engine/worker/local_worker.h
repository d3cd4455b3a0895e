// SPDX-License-Identifier: Apache-2.0
// LocalWorker: one rank in this process. Gives a RankModel its thread, on which it is built, runs
// its plans in order, and is destroyed. The thread has one place to wait, its queue: plans come
// from the engine, and word that a step is done from the backend.
#pragma once

#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/check.h"
#include "engine/base/queue.h"
#include "engine/worker/key_codes.h"
#include "engine/worker/rank_model.h"
#include "engine/worker/worker.h"

namespace asynctls {

template <Ops B>
class LocalWorker : public Worker {
 public:
  // Called on the worker's thread.
  using MakeBackend = std::function<absl::StatusOr<Backend<B>>(const v1::InitRequest&)>;

  explicit LocalWorker(MakeBackend make_backend)
      : make_backend_(std::move(make_backend)), thread_([this] { Loop(); }) {}

  // Runs what was submitted, then ends the thread.
  ~LocalWorker() override {
    queue_.Push(nullptr);
    thread_.join();
  }

  absl::StatusOr<v1::InitReply> Init(const v1::InitRequest& request) override {
    std::promise<absl::StatusOr<v1::InitReply>> promise;
    queue_.Push([&] { promise.set_value(Build(request)); });
    return promise.get_future().get();
  }

  void Submit(std::shared_ptr<const v1::StepPlan> plan, Done done) override {
    queue_.Push([this, plan = std::move(plan), done = std::move(done)]() mutable {
      Begin(*plan, std::move(done));
    });
  }

 private:
  using Task = absl::AnyInvocable<void()>;

  void Loop() {
    for (;;) {
      for (Task& task : queue_.PopAll(absl::InfiniteFuture())) {
        if (task == nullptr) {
          while (!under_way_.empty()) End();
          model_.reset();  // on the thread that built it
          return;
        }
        task();
      }
    }
  }

  absl::StatusOr<v1::InitReply> Build(const v1::InitRequest& request) {
    ASYNCTLS_CHECK(model_ == nullptr);
    v1::InitReply reply;
    absl::StatusOr<Backend<B>> backend = make_backend_(request);
    if (!backend.ok()) return dead_ = backend.status();
    absl::StatusOr<std::unique_ptr<RankModel<B>>> model =
        RankModel<B>::Create(request, *std::move(backend), reply);
    if (!model.ok()) return dead_ = model.status();
    const absl::Status coded = InstallKeyCodes(request, **model, reply);
    if (!coded.ok()) return dead_ = coded;
    model_ = *std::move(model);
    dead_ = absl::OkStatus();
    return reply;
  }

  void Begin(const v1::StepPlan& plan, Done done) {
    if (model_ != nullptr && under_way_.size() == static_cast<size_t>(model_->depth())) {
      End();
      ++ended_early_;
    }
    if (dead_.ok()) dead_ = model_->Begin(plan, step_done_);
    if (dead_.ok()) {
      under_way_.push_back(std::move(done));
      return;
    }
    while (!under_way_.empty()) End();
    done(dead_);
  }

  void End() {
    Done done = std::move(under_way_.front());
    under_way_.pop_front();
    done(model_->End());
  }

  // The backend says so once for every step.
  void StepDone() {
    if (ended_early_ > 0) {
      --ended_early_;
    } else if (!under_way_.empty()) {
      End();
    }
  }

  const MakeBackend make_backend_;
  Queue<Task> queue_;
  const std::function<void()> step_done_ = [this] { queue_.Push([this] { StepDone(); }); };

  // Owned by the worker's thread.
  std::deque<Done> under_way_;  // of the steps, oldest first
  int ended_early_ = 0;         // steps that ended before word of it came
  std::unique_ptr<RankModel<B>> model_;
  absl::Status dead_ = absl::FailedPreconditionError("worker: not initialised");

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace asynctls
