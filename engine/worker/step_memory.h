// SPDX-License-Identifier: Apache-2.0
// StepMemory: what a step under way has for itself: what it packs, what comes back, its clock. On a
// device the host's side of it is there once for every step that may be under way, the device's
// side once.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/step.h"
#include "engine/model/step_clock.h"
#include "engine/sparse/selection_results.h"
#include "engine/worker/rank_plan.h"
#include "engine/worker/sampling_inputs.h"
#include "engine/worker/step_inputs.h"

namespace asynctls {

struct StepMemory {
  StepInputs inputs;
  SamplingInputs sampling;
  SelectionResults selected;
  StepClock clock;
  uint64_t step = 0;
  Steps steps;

  // For `count` steps; more than one on a device only. `kind`: where the backend computes. Errors:
  // RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::vector<StepMemory>> Create(const RankPlan& plan,
                                                        MemoryKind kind,
                                                        int count) {
    std::vector<StepMemory> all;
    absl::Status status = Add(StepInputs::Create(plan.inputs, kind),
                              SamplingInputs::Create(plan.sampling, kind),
                              SelectionResults::Create(plan.selection, plan.index, kind),
                              all);
    while (status.ok() && all.size() < static_cast<size_t>(count)) {
      const StepMemory& first = all.front();
      status = Add(first.inputs.Twin(), first.sampling.Twin(), first.selected.Twin(), all);
    }
    if (!status.ok()) return status;
    return all;
  }

 private:
  static absl::Status Add(absl::StatusOr<StepInputs> inputs,
                          absl::StatusOr<SamplingInputs> sampling,
                          absl::StatusOr<SelectionResults> selected,
                          std::vector<StepMemory>& all) {
    absl::Status status = inputs.status();
    status.Update(sampling.status());
    status.Update(selected.status());
    if (!status.ok()) return status;
    all.push_back({.inputs = *std::move(inputs),
                   .sampling = *std::move(sampling),
                   .selected = *std::move(selected),
                   .clock = {},
                   .step = 0,
                   .steps = {}});
    return status;
  }
};

}  // namespace asynctls
