// SPDX-License-Identifier: Apache-2.0
// Request: an immutable ask, and the events that answer it. The engine speaks ids only; text lives
// in the server.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "asynctls/v1/worker.pb.h"

namespace asynctls {

enum class FinishReason {
  kStop,     // an end token or a stop id, or Engine::Cancel with OK (a stop string)
  kLength,   // max_tokens reached
  kAborted,  // Engine::Cancel; `status` says why
  kFailed,   // the engine could not go on; `status` says why
};

struct RequestUsage {
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;
  uint32_t completion_tokens = 0;
  uint32_t decode_steps = 0;
  v1::KvRead kv_read;
};

// One of these per piece of news, on the engine thread, in order. Exactly one has `finished`.
struct TokenEvent {
  std::optional<uint32_t> token;  // a new token
  float log_prob = 0;
  v1::TopIds top;  // where sampling.top_log_probs asks for it
  // Log-probabilities of the next prompt tokens, where sampling.prompt_log_probs asks for them.
  std::optional<v1::PromptTokens> prompt_log_probs;
  std::optional<uint32_t> prompt_tokens_done;  // prefill progress
  struct Finished {
    FinishReason reason;
    std::optional<uint32_t> stop_token;  // the id that ended it, not part of the reply
    absl::Status status;                 // OK for kStop and kLength
    RequestUsage usage;
    absl::Duration queue, prefill, decode;
  };
  std::optional<Finished> finished;
};

struct Request {
  std::string id;  // unique among live requests
  std::vector<uint32_t> prompt;
  uint32_t max_tokens = 0;  // >= 1
  v1::SamplingParams sampling;
  v1::SparseParams sparse;            // resolved: no UNSPECIFIED, no zero budget
  std::vector<uint32_t> stop_tokens;  // end tokens and stop ids
  uint32_t tail = 0;                  // last prompt tokens that go through the decode path
  std::string cache_salt;
  int32_t priority = 0;  // higher is admitted first
  // Not empty: the id of an earlier request with the same prompt and salt, submitted together with
  // this one. This one waits until that one has read its prompt, or has ended, and then finds the
  // prompt's blocks.
  std::string follows;
  absl::Time deadline = absl::InfiniteFuture();
  // Called on the engine thread; must neither block nor call back into the engine.
  absl::AnyInvocable<void(const TokenEvent&)> on_event;
};

}  // namespace asynctls
