// SPDX-License-Identifier: Apache-2.0
// WorkerGroup: all ranks as one. Sends the identical plan to every rank, completes when all have
// acknowledged it, with rank 0's tokens; one rank's failure is the group's.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/worker/worker.h"

namespace asynctls {

class WorkerGroup {
 public:
  // `workers` in rank order, at least one.
  explicit WorkerGroup(std::vector<std::unique_ptr<Worker>> workers);
  ~WorkerGroup();

  // Initialises all ranks in parallel (they meet in a collective, so each needs the others) and
  // blocks until all are done. `request` is common to all: rank and ranks are filled in here;
  // `rendezvous` is chosen by the caller, fresh for every group. The reply is rank 0's with the
  // ranks' bytes per token added up, their memory listed, and the fewest blocks and plans in flight
  // of any rank.
  // Errors: the first failure, the rank's number in front; INTERNAL when ranks disagree about the
  // model or the block size. Called once.
  absl::StatusOr<v1::InitReply> Init(v1::InitRequest request);

  // Sends `plan` to all ranks. `done` is called exactly once, on some worker's thread, and must not
  // block: with rank 0's result, KV reads and NaN heads added up over the ranks; or with
  // UNAVAILABLE as soon as one rank has failed or answered another step. After a failure the group
  // is dead: `done` of every later plan is called at once, on the caller's thread, with the same
  // error. One thread calls Submit; steps may overlap.
  void Submit(std::shared_ptr<const v1::StepPlan> plan, Worker::Done done);

  int ranks() const { return static_cast<int>(workers_.size()); }

 private:
  struct State;
  struct Step;

  std::shared_ptr<State> state_;  // shared with acknowledgements still to come
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace asynctls
