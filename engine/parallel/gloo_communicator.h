// SPDX-License-Identifier: Apache-2.0
// Communicator over Gloo: TCP on the loopback interface, ranks in one process or several of one
// host, which find each other through files in a folder.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/parallel/communicator.h"
#include "engine/parallel/shard.h"

namespace gloo {
class Context;
}

namespace asynctls {

class GlooCommunicator : public Communicator {
 public:
  // A rendezvous for one group: a fresh folder, given alike to every rank's Connect, which removes
  // it. Errors: RESOURCE_EXHAUSTED when no folder can be made.
  static absl::StatusOr<std::string> MakeRendezvous();

  // Blocks until all ranks are there. `limit` bounds the waiting, here and in every later call.
  // Errors: INVALID_ARGUMENT for an impossible shard or an empty rendezvous; UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<GlooCommunicator>> Connect(const Shard& shard,
                                                                   const std::string& rendezvous,
                                                                   absl::Duration limit);

  absl::Status AllReduceSum(View<bf16, 1> x) override;
  absl::Status AllGather(View<const float, 2> part, View<float, 2> all) override;
  absl::Status Broadcast(View<int32_t, 1> x) override;

 private:
  GlooCommunicator(const Shard& shard, std::shared_ptr<gloo::Context> context);
  // `bytes` of every rank, one after the other, in gathered_.
  absl::Status Gather(const void* data, int64_t bytes);

  const Shard shard_;
  const std::shared_ptr<gloo::Context> context_;
  std::vector<char> gathered_;  // scratch, grows to the largest call
};

}  // namespace asynctls
