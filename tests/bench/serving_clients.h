// SPDX-License-Identifier: Apache-2.0
// The client processes of serving_bench: each prints four numbers and leaves at once, its calls
// still open.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "grpcpp/generic/generic_stub.h"
#include "tests/testing/clock_worker.h"
#include "tests/testing/flood.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {

// What a stream's reader notes of each token.
enum class Times {
  kNone,
  kAge,  // since its step was done (ClockWorker)
  kGap,  // since the message before
};

struct ClientCounts {
  std::atomic<bool> counting{false};
  std::atomic<int64_t> tokens{0}, messages{0};
  std::mutex mu;
  std::vector<float> times_us;  // guarded by mu
};

class StreamReader final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  StreamReader(v1::GenerationService::Stub& stub, ClientCounts& counts, Times times)
      : counts_(counts), times_(times) {
    request_ = IdsRequest({1, 2, 3}, 60000);
    request_.set_priority(100);
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
      Note();
    }
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override {
    absl::FPrintF(stderr, "a stream has ended: %s\n", status.error_message());
    std::abort();  // they last longer than any measurement
  }

 private:
  void Note() {
    const absl::Time now = absl::Now();
    std::lock_guard lock(counts_.mu);
    if (times_ == Times::kAge) {
      for (uint32_t stamp : message_.delta().token_ids()) {
        counts_.times_us.push_back(ClockWorker::MicrosSince(stamp));
      }
    } else if (times_ == Times::kGap && last_ != absl::InfinitePast()) {
      counts_.times_us.push_back(static_cast<float>(absl::ToDoubleMicroseconds(now - last_)));
    }
    last_ = now;
  }

  ClientCounts& counts_;
  const Times times_;
  absl::Time last_ = absl::InfinitePast();
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  v1::GenerateResponse message_;
};

inline std::vector<std::shared_ptr<grpc::Channel>> Channels(const std::string& target, int n) {
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < n; ++i) {
    grpc::ChannelArguments args;
    args.SetInt("connection", i);  // or channels share one connection
    channels.push_back(grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), args));
  }
  return channels;
}

inline std::vector<std::unique_ptr<v1::GenerationService::Stub>> Stubs(const std::string& target) {
  std::vector<std::unique_ptr<v1::GenerationService::Stub>> stubs;
  for (const auto& channel : Channels(target, 8)) {
    stubs.push_back(v1::GenerationService::NewStub(channel));
  }
  return stubs;
}

// Prints "tokens messages p50 p99" for `seconds` of reading, after as much as two seconds.
inline int RunClient(const std::string& target, int streams, int seconds, Times times) {
  const auto stubs = Stubs(target);
  ClientCounts counts;
  std::vector<std::unique_ptr<StreamReader>> readers;
  for (int i = 0; i < streams; ++i) {
    readers.push_back(std::make_unique<StreamReader>(*stubs[i % stubs.size()], counts, times));
  }
  absl::SleepFor(absl::Seconds(2));
  counts.counting = true;
  absl::SleepFor(absl::Seconds(seconds));
  counts.counting = false;
  std::lock_guard lock(counts.mu);
  std::vector<float>& sorted = counts.times_us;
  std::sort(sorted.begin(), sorted.end());
  const auto at = [&](double q) { return sorted.empty() ? 0 : sorted[q * (sorted.size() - 1)]; };
  absl::PrintF("%d %d %f %f\n", counts.tokens.load(), counts.messages.load(), at(0.5), at(0.99));
  std::fflush(stdout);
  _exit(0);  // the server notices
}

inline int RunTokenizeClient(const std::string& target, int seconds) {
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

// `rate` malformed requests a second, one protocol after another, over four connections; what
// happens to be valid is cancelled at its first answer or after a second. Prints "ended 0 0 0",
// `ended` being the calls that ended in the `seconds` after the first one.
inline int RunFlood(const std::string& target, int rate, int seconds) {
  constexpr int kMessages = 1500;  // made beforehand, sent in turn
  constexpr int kInFlight = 256;   // more are not sent, so a slow server lowers the rate
  Rng rng(1);
  std::vector<std::pair<const char*, std::string>> messages;
  for (int i = 0; i < kMessages / 3; ++i) {
    messages.emplace_back(kNativeMethod, Spoiled(ValidNative(), i, rng));
    messages.emplace_back(kVllmMethod, Spoiled(ValidVllm(), i, rng));
    messages.emplace_back(kKserveMethod, Spoiled(ValidKserve(), i, rng));
  }
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs;
  for (const auto& channel : Channels(target, 4)) {
    stubs.push_back(std::make_unique<grpc::GenericStub>(channel));
  }
  std::atomic<int> in_flight{0};
  std::atomic<int64_t> ended{0};
  int64_t before = 0;
  const absl::Time begin = absl::Now();
  const absl::Time count_from = begin + absl::Seconds(1), end = count_from + absl::Seconds(seconds);
  absl::Time next = begin;
  for (int64_t i = 0; absl::Now() < end; ++i, next += absl::Seconds(1) / rate) {
    absl::SleepFor(next - absl::Now());
    if (absl::Now() < count_from) before = ended;
    if (in_flight >= kInFlight) continue;
    ++in_flight;
    const auto& [method, bytes] = messages[i % kMessages];
    FloodCall::Start(
        *stubs[i % stubs.size()], method, bytes, absl::Seconds(1), 1, [&](grpc::StatusCode) {
          ++ended;
          --in_flight;
        });
  }
  absl::PrintF("%d 0 0 0\n", ended - before);
  std::fflush(stdout);
  _exit(0);
}

}  // namespace asynctls::testing
