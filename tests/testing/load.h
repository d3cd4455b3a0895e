// SPDX-License-Identifier: Apache-2.0
// Load: streams of one server at the same time, some of them cancelled, every end counted. Used by
// the load test (seconds) and the soak program (minutes).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "asynctls/v1/generation.grpc.pb.h"
#include "grpcpp/grpcpp.h"

namespace asynctls::testing {

struct LoadOptions {
  int streams = 32;
  absl::Duration duration;
  int cancel_percent = 20;
  uint32_t max_prompt = 2000;
  uint32_t max_tokens = 200;
  uint32_t vocab = 2000;
};

struct LoadCounts {
  std::atomic<int64_t> begun{0};
  std::atomic<int64_t> finished{0};   // OK with exactly one Finished message, the last one
  std::atomic<int64_t> cancelled{0};  // CANCELLED without one
  std::atomic<int64_t> outrun{0};     // cancelled too late: finished
  std::atomic<int64_t> other{0};      // anything else: a fault
  std::atomic<int64_t> tokens{0};

  int64_t ended() const { return finished + cancelled + outrun + other; }
};

// One call with random sizes; its end is counted once.
inline void RunOne(v1::GenerationService::Stub& stub,
                   const LoadOptions& options,
                   std::mt19937& random,
                   LoadCounts& counts) {
  const auto below = [&random](uint32_t n) { return static_cast<uint32_t>(random() % n); };
  v1::GenerateRequest request;
  const uint32_t prompt = 1 + below(options.max_prompt);
  for (uint32_t i = 0; i < prompt; ++i) {
    request.mutable_token_ids()->add_ids(below(options.vocab));
  }
  request.mutable_stopping()->set_max_tokens(1 + below(options.max_tokens));
  request.mutable_response()->set_token_ids(true);
  request.mutable_sampling()->set_temperature(0);
  const bool cancel = below(100) < static_cast<uint32_t>(options.cancel_percent);
  uint32_t reads_left = cancel ? below(20) : UINT32_MAX;

  ++counts.begun;
  grpc::ClientContext context;
  auto reader = stub.Generate(&context, request);
  v1::GenerateResponse message;
  int finished = 0;
  bool after = false;  // something came after Finished
  if (reads_left == 0) context.TryCancel();
  while (reader->Read(&message)) {
    after |= finished > 0;
    finished += message.has_finished();
    counts.tokens += message.delta().token_ids_size();
    if (--reads_left == 0) context.TryCancel();
  }
  const grpc::Status status = reader->Finish();
  if (status.ok() && finished == 1 && !after) {
    ++(cancel ? counts.outrun : counts.finished);
  } else if (cancel && status.error_code() == grpc::StatusCode::CANCELLED) {
    ++counts.cancelled;
  } else {
    ++counts.other;
  }
}

// Blocks for `duration` and until every call has ended.
inline void RunLoad(v1::GenerationService::Stub& stub,
                    const LoadOptions& options,
                    LoadCounts& counts) {
  const absl::Time end = absl::Now() + options.duration;
  std::vector<std::thread> threads;
  for (int t = 0; t < options.streams; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      while (absl::Now() < end) RunOne(stub, options, random, counts);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace asynctls::testing
