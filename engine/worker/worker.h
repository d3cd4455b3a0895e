// SPDX-License-Identifier: Apache-2.0
// Worker: one rank of the device half, the bridge's far end. A LocalWorker runs in this process, a
// remote one behind a stream; WorkerGroup cannot tell them apart. Virtual because it is crossed
// once per step.
#pragma once

#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "asynctls/v1/worker.pb.h"

namespace asynctls {

class Worker {
 public:
  using Done = absl::AnyInvocable<void(absl::StatusOr<v1::StepResult>)>;

  virtual ~Worker() = default;

  // Loads the model, plans and allocates all memory. Called once, before any Submit; blocks.
  // Errors: INVALID_ARGUMENT or FAILED_PRECONDITION naming file and field; RESOURCE_EXHAUSTED with
  // the plan's numbers when memory does not suffice.
  virtual absl::StatusOr<v1::InitReply> Init(const v1::InitRequest& request) = 0;

  // Runs one step. Plans run in the order of submission, however many there are; `done` is called
  // exactly once, on the worker's own thread, and must not block. An error means the rank is dead:
  // every later step fails as well. The plan is shared by all ranks and not changed.
  virtual void Submit(std::shared_ptr<const v1::StepPlan> plan, Done done) = 0;
};

}  // namespace asynctls
