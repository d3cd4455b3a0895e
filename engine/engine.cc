// SPDX-License-Identifier: Apache-2.0
// The engine thread: one queue of messages in, plans in flight, events out.
#include "engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/logging.h"
#include "engine/base/queue.h"

namespace asynctls {
namespace {

// Between two copies for Requests(), and between two reports of block heat.
constexpr absl::Duration kWatchPeriod = absl::Milliseconds(200);

uint64_t PromptTokens(const std::vector<Request>& requests) {
  uint64_t tokens = 0;
  for (const Request& request : requests) tokens += request.prompt.size();
  return tokens;
}

uint64_t Count(const prometheus::Counter& counter) {
  return static_cast<uint64_t>(counter.Value());
}

// Whether the requests can ever run, each by itself, and all be queued at once.
absl::Status CheckAll(const SchedulerConfig& config, const std::vector<Request>& requests) {
  for (const Request& request : requests) {
    absl::Status status = Scheduler::Check(config, request);
    if (!status.ok()) return status;
  }
  const uint64_t tokens = PromptTokens(requests);
  if (requests.size() > config.max_waiting_requests || tokens > config.max_waiting_prompt_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("n: ",
                                                   requests.size(),
                                                   " sequences with ",
                                                   tokens,
                                                   " prompt tokens in all, the queue holds ",
                                                   config.max_waiting_requests,
                                                   " with ",
                                                   config.max_waiting_prompt_tokens));
  }
  return absl::OkStatus();
}

}  // namespace

struct Engine::Impl {
  struct Arrival {
    std::vector<Request> requests;
    absl::Time at;
  };
  struct CancelOne {
    std::string id;
    absl::Status why;
    absl::Time at;
  };
  struct CancelEverything {
    absl::Status why;
    bool stop;  // and leave the loop
  };
  struct StepDone {
    absl::StatusOr<v1::StepResult> result;
    absl::Time at;
  };
  struct WatchUntil {
    absl::Time until;
  };
  using Message = std::variant<Arrival, CancelOne, CancelEverything, StepDone, WatchUntil>;

  Impl(const SchedulerConfig& config, std::unique_ptr<WorkerGroup> workers, Metrics& metrics);

  absl::Status Admit(const std::vector<Request>& requests);
  void Run();
  void Handle(Message& message);
  void HandleStep(const StepDone& done, absl::Time now);
  bool StartStep();
  void CopyTable(absl::Time now);
  void Publish(const std::vector<Scheduler::Event>& events);
  void Deliver(std::vector<Scheduler::Event> events);

  // Constant after construction.
  const SchedulerConfig config;
  Metrics& metrics;
  Queue<Message> inbox;

  // Engine thread only.
  Scheduler scheduler;
  std::unique_ptr<WorkerGroup> workers;
  // Of each plan in flight, oldest first: how long the ranks had nothing to do before it although
  // requests were pending, as seen from here; none where no request was.
  std::deque<std::optional<absl::Duration>> in_flight;
  bool stopping = false;
  absl::Status failure;                    // of the workers, once they are dead
  absl::Time last_progress = absl::Now();  // a step began or ended
  // When the ranks became idle with requests pending; InfiniteFuture = nothing was pending.
  absl::Time idle_since = absl::InfiniteFuture();
  absl::Time watched_until = absl::InfinitePast();
  absl::Time last_heat = absl::InfinitePast(), last_copy = absl::InfinitePast();

  // Guarded by mu.
  mutable std::mutex mu;
  std::condition_variable all_finished;
  std::unordered_set<std::string> live;  // ids from Submit until their finish is about to be told
  uint64_t arrived_requests = 0, arrived_tokens = 0;        // all accepted so far
  uint64_t left_queue_requests = 0, left_queue_tokens = 0;  // of these, no longer waiting
  uint64_t told_finished = 0;                               // of these, on_event has returned
  bool draining = false;
  Snapshot state;
  std::shared_ptr<const RequestTable> table = std::make_shared<RequestTable>();

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
  state.max_running = scheduler.max_running();
  metrics.SetCacheConfig(config.block_positions, config.blocks);
  thread = std::thread([this] { Run(); });
}

// The whole engine.
void Engine::Impl::Run() {
  while (!stopping || !in_flight.empty()) {
    for (Message& message : inbox.PopAll(scheduler.NextDeadline())) Handle(message);
    scheduler.Expire(absl::Now());
    if (!failure.ok()) {
      scheduler.FailAll(failure, absl::Now());
    } else {
      while (in_flight.size() < config.plans_in_flight && StartStep()) {
      }
    }
    CopyTable(absl::Now());
    std::vector<Scheduler::Event> events = scheduler.TakeEvents();
    Publish(events);  // first: whoever is told of a finish finds its blocks returned
    Deliver(std::move(events));
  }
}

void Engine::Impl::Handle(Message& message) {
  const absl::Time now = absl::Now();
  if (auto* arrival = std::get_if<Arrival>(&message)) {
    for (Request& request : arrival->requests) scheduler.Add(std::move(request), arrival->at);
  } else if (auto* cancel = std::get_if<CancelOne>(&message)) {
    scheduler.Cancel(cancel->id, cancel->why, cancel->at, now);
  } else if (auto* everything = std::get_if<CancelEverything>(&message)) {
    scheduler.CancelAll(everything->why, now);
    stopping |= everything->stop;
  } else if (auto* watch = std::get_if<WatchUntil>(&message)) {
    watched_until = std::max(watched_until, watch->until);
  } else {
    HandleStep(std::get<StepDone>(message), now);
  }
}

void Engine::Impl::HandleStep(const StepDone& done, absl::Time now) {
  const std::optional<absl::Duration> gap = in_flight.front();
  in_flight.pop_front();
  last_progress = now;
  if (!failure.ok()) return;  // what was in flight behind the step that failed
  failure = done.result.ok() ? scheduler.Commit(*done.result, now) : done.result.status();
  if (!failure.ok()) {
    failure = absl::UnavailableError(absl::StrCat("workers failed: ", failure.message()));
    spdlog::critical("{}", std::string(failure.message()));
    return;
  }
  const bool pending = scheduler.running() + scheduler.waiting() > 0;
  idle_since = pending ? done.at : absl::InfiniteFuture();
  if (!gap.has_value()) return;
  metrics.step_gap.Observe(done.result->has_idle_seconds() ? done.result->idle_seconds()
                                                           : absl::ToDoubleSeconds(*gap));
}

// Plans a step and sends it; false where there is nothing to do.
bool Engine::Impl::StartStep() {
  const absl::Time begin = absl::Now();
  const bool report_blocks = begin < watched_until && begin - last_heat >= kWatchPeriod;
  auto plan = std::make_shared<const v1::StepPlan>(scheduler.Plan(begin, report_blocks));
  if (plan->work().empty()) {
    idle_since = absl::InfiniteFuture();
    return false;
  }
  if (report_blocks) last_heat = begin;
  last_progress = absl::Now();
  if (!in_flight.empty()) {
    in_flight.push_back(absl::ZeroDuration());
  } else if (idle_since != absl::InfiniteFuture()) {
    in_flight.push_back(last_progress - idle_since);
  } else {
    in_flight.push_back(std::nullopt);
  }
  workers->Submit(std::move(plan), [this](absl::StatusOr<v1::StepResult> result) {
    inbox.Push(StepDone{std::move(result), absl::Now()});
  });
  return true;
}

// For whoever watches, if it is time.
void Engine::Impl::CopyTable(absl::Time now) {
  if (now >= watched_until || now - last_copy < kWatchPeriod) return;
  last_copy = now;
  auto copy = std::make_shared<const RequestTable>(RequestTable{now, scheduler.Statuses(now)});
  std::lock_guard lock(mu);
  table.swap(copy);  // the old one is freed after the lock
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
  state.blocks_reserved = scheduler.reserved();
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

// Requires: mu held. Takes the requests into account if nothing speaks against them.
absl::Status Engine::Impl::Admit(const std::vector<Request>& requests) {
  if (!state.healthy) return absl::UnavailableError("the workers have failed");
  if (draining) return absl::UnavailableError("the server is draining");
  const uint64_t waiting = arrived_requests - left_queue_requests;
  const uint64_t waiting_tokens = arrived_tokens - left_queue_tokens;
  const uint64_t tokens = PromptTokens(requests);
  if (waiting + requests.size() > config.max_waiting_requests ||
      waiting_tokens + tokens > config.max_waiting_prompt_tokens) {
    return absl::ResourceExhaustedError(absl::StrCat("queue full: ",
                                                     waiting,
                                                     " requests with ",
                                                     waiting_tokens,
                                                     " prompt tokens are waiting, at most ",
                                                     config.max_waiting_requests,
                                                     " with ",
                                                     config.max_waiting_prompt_tokens));
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    if (live.insert(requests[i].id).second) continue;
    for (size_t taken = 0; taken < i; ++taken) live.erase(requests[taken].id);
    return absl::AlreadyExistsError(
        absl::StrCat("request_id: ", requests[i].id, " is in progress"));
  }
  arrived_requests += requests.size();
  arrived_tokens += tokens;
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
  std::vector<Request> requests;
  requests.push_back(std::move(request));
  return Submit(std::move(requests));
}

absl::Status Engine::Submit(std::vector<Request> requests) {
  ASYNCTLS_CHECK(!requests.empty());
  absl::Status status = CheckAll(impl_->config, requests);
  if (status.ok()) {
    const auto n = static_cast<double>(requests.size());
    const double max_tokens = requests.front().max_tokens;
    std::unique_lock lock(impl_->mu);
    status = impl_->Admit(requests);
    if (status.ok()) {
      impl_->inbox.Push(Impl::Arrival{std::move(requests), absl::Now()});
      lock.unlock();
      impl_->metrics.request_params_n.Observe(n);
      impl_->metrics.request_params_max_tokens.Observe(max_tokens);
      return status;
    }
  }
  impl_->metrics.CountRejected(status);
  return status;
}

void Engine::Cancel(const std::string& id, absl::Status why) {
  impl_->inbox.Push(Impl::CancelOne{id, std::move(why), absl::Now()});
}

void Engine::Watch(absl::Duration duration) {
  impl_->inbox.Push(Impl::WatchUntil{absl::Now() + duration});
}

std::shared_ptr<const RequestTable> Engine::Requests() const {
  std::lock_guard lock(impl_->mu);
  return impl_->table;
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
  Snapshot snapshot;
  {
    std::lock_guard lock(impl_->mu);
    snapshot = impl_->state;
    snapshot.waiting = static_cast<int>(impl_->arrived_requests - impl_->left_queue_requests);
    snapshot.waiting_prompt_tokens = impl_->arrived_tokens - impl_->left_queue_tokens;
  }
  const Metrics& metrics = impl_->metrics;  // counters are atomic
  snapshot.prompt_tokens_computed = Count(metrics.prompt_tokens_computed);
  snapshot.generation_tokens = Count(metrics.generation_tokens);
  snapshot.prefix_query_tokens = Count(metrics.prefix_cache_queries_tokens);
  snapshot.prefix_hit_tokens = Count(metrics.prefix_cache_hits_tokens);
  for (size_t i = 0; i < kStepPhases.size(); ++i) {
    snapshot.step_phase_seconds[i] = metrics.step_phase_seconds[i]->Value();
  }
  return snapshot;
}

}  // namespace asynctls
