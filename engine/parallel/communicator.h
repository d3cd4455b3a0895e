// SPDX-License-Identifier: Apache-2.0
// Communicator: the collectives of a tensor-parallel group. Virtual because each call is a
// collective already: two per layer. With one rank there is none and nobody calls it.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device/dtype.h"
#include "kernels/device/view.h"

namespace asynctls {

// Every rank makes the same calls in the same order, from one thread. An error means the group is
// dead (a peer vanished or did not come within the time limit).
class Communicator {
 public:
  virtual ~Communicator() = default;

  // x += the other ranks' x, elementwise: fp32 sums in rank order, rounded once, so that all ranks
  // hold the same bits and an element's sum does not depend on what else is in the call.
  virtual absl::Status AllReduceSum(View<bf16, 1> x) = 0;

  // all[s] = part[s] of rank 0, then of rank 1, ...: [S, C] of each rank to [S, ranks C].
  virtual absl::Status AllGather(View<const float, 2> part, View<float, 2> all) = 0;

  // x = rank 0's x.
  virtual absl::Status Broadcast(View<int32_t, 1> x) = 0;
};

}  // namespace asynctls
