// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/overload.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/frontend/errors.h"

namespace asynctls {
namespace {

constexpr double kBusy = 0.5;  // share of the queue
constexpr uint32_t kFull = 2;
// A queue that is merely busy empties sooner than a full one.
constexpr absl::Duration kRetryBusy = absl::Seconds(1);

double Share(uint64_t used, uint64_t most) {
  return most == 0 ? 0 : static_cast<double>(used) / static_cast<double>(most);
}

absl::Status Refuse(const QueueLoad& load, uint32_t level, const std::string& why) {
  const std::string message = absl::StrCat(why,
                                           ": ",
                                           load.requests,
                                           " of ",
                                           load.max_requests,
                                           " requests (max_waiting_requests), ",
                                           load.tokens,
                                           " of ",
                                           load.max_tokens,
                                           " prompt tokens (max_waiting_prompt_tokens) and ",
                                           load.bytes,
                                           " of ",
                                           load.max_bytes,
                                           " bytes not yet tokenized are waiting");
  return WithRetry(WithReason(absl::ResourceExhaustedError(message),
                              level == kFull ? "QUEUE_FULL" : "PRIORITY_TOO_LOW"),
                   level == kFull ? kRetryQueueFull : kRetryBusy);
}

}  // namespace

uint32_t OverloadLevel(const QueueLoad& load) {
  const double share = std::max({Share(load.requests, load.max_requests),
                                 Share(load.bytes, load.max_bytes),
                                 Share(load.tokens, load.max_tokens)});
  return share >= 1 ? kFull : share >= kBusy ? 1 : 0;
}

absl::Status CheckOverload(const QueueLoad& load, int64_t bytes, int32_t priority) {
  const uint32_t level = OverloadLevel(load);
  if (level == kFull || load.bytes + bytes > load.max_bytes) {
    return Refuse(load, kFull, "the queue is full");
  }
  if (level > 0 && priority < 0) {
    return Refuse(load,
                  level,
                  absl::StrCat("the queue is over half full: priority ", priority, " is below 0"));
  }
  return absl::OkStatus();
}

}  // namespace asynctls
