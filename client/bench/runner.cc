// SPDX-License-Identifier: Apache-2.0
#include "client/bench/runner.h"

#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "asynctls/v1/generation.grpc.pb.h"
#include "client/client.h"
#include "grpcpp/alarm.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "proto/enum_names.h"

namespace asynctls {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Threads of this process; 0 where the system does not say.
int Threads() {
  std::ifstream status("/proc/self/status");
  int threads;
  for (std::string line; std::getline(status, line);) {
    absl::string_view text = line;
    if (absl::ConsumePrefix(&text, "Threads:") && absl::SimpleAtoi(text, &threads)) return threads;
  }
  return 0;
}

// What all streams of a run share.
class Session {
 public:
  Session(const RunOptions& options, Recorder* recorder) : options_(options), recorder_(recorder) {
    for (int i = 0; i < options.connections; ++i) {
      stubs_.push_back(v1::GenerationService::NewStub(MakeChannel(options.target, i)));
    }
  }

  const RunOptions& options() const { return options_; }
  v1::GenerationService::Stub& NextStub() { return *stubs_[sent_ % stubs_.size()]; }
  double Now() const { return Seconds(Clock::now() - start_); }

  void Begin() {
    std::lock_guard lock(mu_);
    ++sent_;
    ++running_;
  }
  void End(const Record& record, uint64_t messages, Clock::duration callback) {
    if (recorder_ != nullptr) recorder_->Add(record);
    messages_ += messages;
    callback_ns_ += std::chrono::duration_cast<std::chrono::nanoseconds>(callback).count();
    std::lock_guard lock(mu_);
    --running_;
    ended_.notify_all();
  }
  // Waits until fewer than `limit` are running or `until` has come; false in the latter case.
  bool WaitBelow(uint64_t limit, Clock::time_point until) {
    std::unique_lock lock(mu_);
    const auto below = [&] { return running_ < limit; };
    if (until != Clock::time_point::max()) return ended_.wait_until(lock, until, below);
    ended_.wait(lock, below);
    return true;
  }

  LiveCounts Counts() {
    LiveCounts counts;
    {
      std::lock_guard lock(mu_);
      counts.sent = sent_;
      counts.running = running_;
    }
    counts.ended = recorder_->ended();
    counts.tokens = recorder_->tokens();
    counts.seconds = Now();
    return counts;
  }
  uint64_t messages() const { return messages_; }
  double callback_seconds() const { return static_cast<double>(callback_ns_) * 1e-9; }

 private:
  const RunOptions& options_;
  Recorder* const recorder_;  // null: nothing is recorded
  const Clock::time_point start_ = Clock::now();
  std::vector<std::unique_ptr<v1::GenerationService::Stub>> stubs_;
  std::atomic<uint64_t> messages_{0};
  std::atomic<int64_t> callback_ns_{0};

  std::mutex mu_;  // guards what follows
  std::condition_variable ended_;
  uint64_t sent_ = 0, running_ = 0;
};

// One call; deletes itself when it has ended.
class Stream final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Stream(Session& session, PlannedRequest planned)
      : session_(session), planned_(std::move(planned)) {
    record_.kind = planned_.kind;
  }

  void Start() {
    const absl::Duration limit =
        planned_.kind == Kind::kDeadline ? session_.options().deadline : session_.options().timeout;
    if (limit != absl::InfiniteDuration()) {
      context_.set_deadline(absl::ToChronoTime(absl::Now() + limit));
    }
    const bool cancel = planned_.kind == Kind::kCancel && planned_.cancel_after == 0;
    auto& stub = session_.NextStub();
    session_.Begin();
    record_.sent = session_.Now();
    stub.async()->Generate(&context_, &planned_.request, this);
    StartRead(&message_);
    // Delayed reads start outside of reactions, so the call must not end on its own before them.
    if (planned_.kind == Kind::kSlow || cancel) AddHold();
    StartCall();
    if (cancel) {
      context_.TryCancel();
      RemoveHold();  // this may be gone after it
    }
  }

  void OnReadDone(bool ok) override {
    const Clock::time_point begin = Clock::now();
    if (!ok) {
      if (planned_.kind == Kind::kSlow) RemoveHold();
      return;
    }
    ++messages_;
    Take(session_.Now());
    callback_ += Clock::now() - begin;
    if (planned_.kind == Kind::kSlow) {
      // A new one each time: the last one's function may still be returning in another thread.
      alarm_ = std::make_unique<grpc::Alarm>();
      alarm_->Set(absl::ToChronoTime(absl::Now() + session_.options().slow_delay),
                  [this](bool) { StartRead(&message_); });
    } else {
      StartRead(&message_);
    }
  }

  void OnDone(const grpc::Status& status) override {
    const Clock::time_point begin = Clock::now();
    record_.ended = session_.Now();
    if (!status.ok()) {
      record_.outcome = absl::AsciiStrToLower(
          absl::StatusCodeToString(static_cast<absl::StatusCode>(status.error_code())));
    } else if (finished_ != 1 || after_finished_) {
      record_.outcome = "broken_stream";
    }
    session_.End(record_, messages_, callback_ + (Clock::now() - begin));
    delete this;
  }

 private:
  void Take(double now) {
    after_finished_ |= finished_ > 0;
    if (message_.has_started()) record_.prompt_tokens = message_.started().prompt_tokens();
    if (message_.has_delta()) TakeTokens(message_.delta().token_ids_size(), now);
    if (!message_.has_finished()) return;
    ++finished_;
    const v1::Finished& end = message_.finished();
    record_.outcome = ReasonName(end.reason());
    record_.cached_tokens = end.usage().cached_tokens();
    record_.read_bytes = end.usage().kv_read().bytes();
    record_.dense_bytes = end.usage().kv_read().dense_bytes();
  }

  void TakeTokens(int count, double now) {
    for (int i = 0; i < count; ++i) {
      if (record_.first_token.has_value()) {
        record_.gaps.push_back(static_cast<float>(now - last_token_));
      } else {
        record_.first_token = now;
      }
      last_token_ = now;
    }
    if (planned_.kind == Kind::kCancel && record_.tokens() >= planned_.cancel_after) {
      context_.TryCancel();
    }
  }

  Session& session_;
  PlannedRequest planned_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::Alarm> alarm_;
  v1::GenerateResponse message_;
  Record record_;
  double last_token_ = 0;
  uint64_t messages_ = 0;
  int finished_ = 0;
  bool after_finished_ = false;
  Clock::duration callback_{};
};

void SendClosed(Session& session, const Workload& workload, Clock::time_point until) {
  const RunOptions& options = session.options();
  for (uint64_t i = 0; i < options.num_requests; ++i) {
    PlannedRequest planned = workload.Plan(i);
    if (!session.WaitBelow(options.concurrency, until) || Clock::now() >= until) return;
    (new Stream(session, std::move(planned)))->Start();
  }
}

void SendOpen(Session& session,
              const Workload& workload,
              Clock::time_point until,
              Distribution& lateness) {
  const RunOptions& options = session.options();
  Arrivals arrivals(options.rate, options.burstiness, options.seed);
  const Clock::time_point start = Clock::now();
  for (uint64_t i = 0; i < options.num_requests; ++i) {
    PlannedRequest planned = workload.Plan(i);  // made before its time comes
    const auto due = start + std::chrono::duration_cast<Clock::duration>(
                                 std::chrono::duration<double>(arrivals.Next()));
    if (due >= until) return;
    std::this_thread::sleep_until(due);
    lateness.Add(std::max(0.0, Seconds(Clock::now() - due)));
    (new Stream(session, std::move(planned)))->Start();
  }
}

void WarmUp(const RunOptions& options, const Workload& workload) {
  constexpr uint64_t kAtATime = 8;
  Session session(options, nullptr);
  for (uint64_t i = 0; i < options.warmup; ++i) {
    session.WaitBelow(kAtATime, Clock::time_point::max());
    (new Stream(session, workload.PlanWarmup(i)))->Start();
  }
  session.WaitBelow(1, Clock::time_point::max());
}

// Wakes up every 10 ms until told to stop: notes by how much later than asked, counts threads, and
// calls `on_progress`.
class Probe {
 public:
  Probe(Session& session, const std::function<void(const LiveCounts&)>& on_progress)
      : thread_([this, &session, &on_progress] { Run(session, on_progress); }) {}

  void Stop(RunStats& stats) {
    stop_ = true;
    thread_.join();
    stats.wakeup_lag = std::move(lag_);
    stats.threads = threads_;
  }

 private:
  void Run(Session& session, const std::function<void(const LiveCounts&)>& on_progress) {
    for (int i = 0; !stop_; ++i) {
      const Clock::time_point due = Clock::now() + std::chrono::milliseconds(10);
      std::this_thread::sleep_until(due);
      lag_.Add(std::max(0.0, Seconds(Clock::now() - due)));
      if (i % 10 != 0) continue;
      threads_ = std::max(threads_, Threads());
      if (on_progress) on_progress(session.Counts());
    }
  }

  std::atomic<bool> stop_{false};
  Distribution lag_;
  int threads_ = 0;
  std::thread thread_;  // last: it uses the others
};

}  // namespace

RunStats RunBenchmark(const RunOptions& options,
                      const Workload& workload,
                      Recorder& recorder,
                      const std::function<void(const LiveCounts&)>& on_progress) {
  if (options.warmup > 0) WarmUp(options, workload);
  RunStats stats;
  Session session(options, &recorder);
  const double cpu = CpuSeconds();
  const Clock::time_point start = Clock::now();
  const bool endless = options.duration == absl::InfiniteDuration();
  const Clock::time_point until = endless
                                      ? Clock::time_point::max()
                                      : start + std::chrono::duration_cast<Clock::duration>(
                                                    absl::ToChronoNanoseconds(options.duration));
  Probe probe(session, on_progress);
  if (options.rate > 0) {
    SendOpen(session, workload, until, stats.send_lateness);
  } else {
    SendClosed(session, workload, until);
  }
  session.WaitBelow(1, Clock::time_point::max());
  stats.wall_seconds = Seconds(Clock::now() - start);
  stats.cpu_seconds = CpuSeconds() - cpu;
  probe.Stop(stats);
  stats.messages = session.messages();
  stats.callback_seconds = session.callback_seconds();
  return stats;
}

}  // namespace asynctls
