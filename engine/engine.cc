// SPDX-License-Identifier: Apache-2.0
// The engine thread: one queue of messages in, one plan in flight, events out.
#include "engine/engine.h"

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/logging.h"
#include "engine/base/queue.h"

namespace asynctls {

struct Engine::Impl {
  struct Arrival {
    Request request;
    absl::Time at;
  };
  struct CancelOne {
    std::string id;
    absl::Status why;
  };
  struct CancelEverything {
    absl::Status why;
    bool stop;  // and leave the loop
  };
  using StepDone = absl::StatusOr<v1::StepResult>;
  using Message = std::variant<Arrival, CancelOne, CancelEverything, StepDone>;

  Impl(const SchedulerConfig& config, std::unique_ptr<WorkerGroup> workers, Metrics& metrics);

  absl::Status Admit(const Request& request);
  void Run();
  void Handle(Message& message);
  void StartStep();
  void Publish(const std::vector<Scheduler::Event>& events);
  void Deliver(std::vector<Scheduler::Event> events);

  // Constant after construction.
  const SchedulerConfig config;
  Metrics& metrics;
  Queue<Message> inbox;

  // Engine thread only.
  Scheduler scheduler;
  std::unique_ptr<WorkerGroup> workers;
  bool in_flight = false, stopping = false;
  absl::Status failure;                    // of the workers, once they are dead
  absl::Time last_progress = absl::Now();  // a step began or ended

  // Guarded by mu.
  mutable std::mutex mu;
  std::condition_variable all_finished;
  std::unordered_set<std::string> live;  // ids from Submit until their finish is about to be told
  uint64_t arrived_requests = 0, arrived_tokens = 0;        // all accepted so far
  uint64_t left_queue_requests = 0, left_queue_tokens = 0;  // of these, no longer waiting
  uint64_t told_finished = 0;                               // of these, on_event has returned
  bool draining = false;
  Snapshot state;

  std::thread thread;  // last: starts when everything else is there
};

Engine::Impl::Impl(const SchedulerConfig& scheduler_config,
                   std::unique_ptr<WorkerGroup> group,
                   Metrics& engine_metrics)
    : config(scheduler_config),
      metrics(engine_metrics),
      scheduler(scheduler_config, engine_metrics),
      workers(std::move(group)) {
  state.last_progress = last_progress;
  state.blocks_total = config.blocks;
  thread = std::thread([this] { Run(); });
}

// The whole engine.
void Engine::Impl::Run() {
  while (!stopping || in_flight) {
    for (Message& message : inbox.PopAll(scheduler.NextDeadline())) Handle(message);
    scheduler.Expire(absl::Now());
    if (!failure.ok()) {
      scheduler.FailAll(failure, absl::Now());
    } else if (!in_flight) {
      StartStep();
    }
    std::vector<Scheduler::Event> events = scheduler.TakeEvents();
    Publish(events);  // first: whoever is told of a finish finds its blocks returned
    Deliver(std::move(events));
  }
}

void Engine::Impl::Handle(Message& message) {
  const absl::Time now = absl::Now();
  if (auto* arrival = std::get_if<Arrival>(&message)) {
    scheduler.Add(std::move(arrival->request), arrival->at);
  } else if (auto* cancel = std::get_if<CancelOne>(&message)) {
    scheduler.Cancel(cancel->id, cancel->why, now);
  } else if (auto* everything = std::get_if<CancelEverything>(&message)) {
    scheduler.CancelAll(everything->why, now);
    stopping |= everything->stop;
  } else {
    const StepDone& result = std::get<StepDone>(message);
    in_flight = false;
    last_progress = now;
    failure = result.ok() ? scheduler.Commit(*result, now) : result.status();
    if (failure.ok()) return;
    failure = absl::UnavailableError(absl::StrCat("workers failed: ", failure.message()));
    spdlog::critical("{}", std::string(failure.message()));
  }
}

void Engine::Impl::StartStep() {
  auto plan = std::make_shared<const v1::StepPlan>(scheduler.Plan(absl::Now()));
  if (plan->work().empty()) return;
  in_flight = true;
  last_progress = absl::Now();
  workers->Submit(std::move(plan),
                  [this](StepDone result) { inbox.Push(Message(std::move(result))); });
}

// Makes the scheduler's numbers visible to other threads.
void Engine::Impl::Publish(const std::vector<Scheduler::Event>& events) {
  std::lock_guard lock(mu);
  for (const Scheduler::Event& event : events) {
    if (event.event.finished.has_value()) live.erase(event.request->id);
  }
  left_queue_requests = scheduler.left_queue_requests();
  left_queue_tokens = scheduler.left_queue_tokens();
  state.running = scheduler.running();
  state.blocks_used = scheduler.blocks().used();
  state.blocks_cached = scheduler.blocks().cached();
  state.last_progress = last_progress;
  state.steps = scheduler.committed_steps();
  state.healthy = failure.ok();
}

void Engine::Impl::Deliver(std::vector<Scheduler::Event> events) {
  uint64_t finished = 0;
  for (Scheduler::Event& event : events) {
    event.request->on_event(event.event);
    finished += event.event.finished.has_value();
  }
  events.clear();  // before anybody is told that all is done: callbacks own things
  if (finished == 0) return;
  std::lock_guard lock(mu);
  told_finished += finished;
  if (told_finished == arrived_requests) all_finished.notify_all();
}

// Requires: mu held. Takes the request into account if nothing speaks against it.
absl::Status Engine::Impl::Admit(const Request& request) {
  if (!state.healthy) return absl::UnavailableError("the workers have failed");
  if (draining) return absl::UnavailableError("the server is draining");
  if (live.count(request.id) > 0) {
    return absl::AlreadyExistsError(absl::StrCat("request_id: ", request.id, " is in progress"));
  }
  const uint64_t requests = arrived_requests - left_queue_requests;
  const uint64_t tokens = arrived_tokens - left_queue_tokens;
  if (requests >= config.max_waiting_requests ||
      tokens + request.prompt.size() > config.max_waiting_prompt_tokens) {
    return absl::ResourceExhaustedError(absl::StrCat("queue full: ",
                                                     requests,
                                                     " requests with ",
                                                     tokens,
                                                     " prompt tokens are waiting, at most ",
                                                     config.max_waiting_requests,
                                                     " with ",
                                                     config.max_waiting_prompt_tokens));
  }
  live.insert(request.id);
  ++arrived_requests;
  arrived_tokens += request.prompt.size();
  return absl::OkStatus();
}

Engine::Engine(const SchedulerConfig& config,
               std::unique_ptr<WorkerGroup> workers,
               Metrics& metrics)
    : impl_(std::make_unique<Impl>(config, std::move(workers), metrics)) {}

Engine::~Engine() {
  {
    std::lock_guard lock(impl_->mu);
    impl_->draining = true;
  }
  impl_->inbox.Push(Impl::CancelEverything{absl::UnavailableError("the server stops"), true});
  impl_->thread.join();
}

absl::Status Engine::Submit(Request request) {
  absl::Status status = Scheduler::Check(impl_->config, request);
  if (status.ok()) {
    std::lock_guard lock(impl_->mu);
    status = impl_->Admit(request);
    if (status.ok()) {
      impl_->inbox.Push(Impl::Arrival{std::move(request), absl::Now()});
      return status;
    }
  }
  impl_->metrics.CountRejected();
  return status;
}

void Engine::Cancel(const std::string& id, absl::Status why) {
  impl_->inbox.Push(Impl::CancelOne{id, std::move(why)});
}

void Engine::Drain(absl::Duration limit) {
  std::unique_lock lock(impl_->mu);
  impl_->draining = true;
  const auto done = [this] { return impl_->told_finished == impl_->arrived_requests; };
  const absl::Time deadline = absl::Now() + limit;
  if (impl_->all_finished.wait_until(lock, absl::ToChronoTime(deadline), done)) return;
  impl_->inbox.Push(
      Impl::CancelEverything{absl::UnavailableError("the server stops: drain limit"), false});
  impl_->all_finished.wait(lock, done);
}

Engine::Snapshot Engine::snapshot() const {
  std::lock_guard lock(impl_->mu);
  Snapshot snapshot = impl_->state;
  snapshot.waiting = static_cast<int>(impl_->arrived_requests - impl_->left_queue_requests);
  return snapshot;
}

}  // namespace asynctls
