// SPDX-License-Identifier: Apache-2.0
// Overload levels: how full the queue is, and whom it still takes in. Pure functions.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace asynctls {

// Worth waiting before another try when the queue is full.
inline constexpr absl::Duration kRetryQueueFull = absl::Seconds(5);

// What waits, and the most that may.
struct QueueLoad {
  uint64_t requests = 0, max_requests = 0;
  uint64_t bytes = 0, max_bytes = 0;  // of prompts not yet tokenized
  uint64_t tokens = 0, max_tokens = 0;
};

// 0: everybody is admitted. 1, from half full: priorities of 0 and more. 2, full: nobody. The
// fullest of the three measures counts.
uint32_t OverloadLevel(const QueueLoad& load);

// Whether the level admits a request that adds `bytes` of prompt. Errors: RESOURCE_EXHAUSTED, with
// the numbers, a reason (QUEUE_FULL or PRIORITY_TOO_LOW) and when to try again.
absl::Status CheckOverload(const QueueLoad& load, int64_t bytes, int32_t priority);

}  // namespace asynctls
