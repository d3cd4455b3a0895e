// SPDX-License-Identifier: Apache-2.0
// RequestStatus: what a status page may see of one live request. A copy: it refers to nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "asynctls/v1/worker.pb.h"

namespace asynctls {

enum class RequestPhase {
  kWaiting,  // no lane yet
  kPrefill,  // reads its prompt (the tail included)
  kDecode,   // has read its prompt
};

struct RequestStatus {
  std::string id;
  RequestPhase phase = RequestPhase::kWaiting;
  int32_t priority = 0;
  // Tokens. computed: positions of prompt and reply whose KV is there, cached ones included.
  uint32_t prompt = 0, cached = 0, computed = 0, generated = 0;
  int64_t blocks = 0;  // held, shared ones included
  absl::Duration age;  // since Submit
  v1::AttentionMode mode = v1::ATTENTION_MODE_UNSPECIFIED;
  uint32_t budget = 0;
  // Of its last reported decode row: for each block of the sequence, in how many of the layers and
  // KV heads it was read, as a share of 255. Empty before the first.
  std::string block_heat;
};

// All live requests at one time: running ones in the order of their admission, then waiting ones in
// the order of the queue.
struct RequestTable {
  absl::Time as_of = absl::InfinitePast();  // InfinitePast: nobody has watched yet
  std::vector<RequestStatus> requests;
};

}  // namespace asynctls
