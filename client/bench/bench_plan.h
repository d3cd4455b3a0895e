// SPDX-License-Identifier: Apache-2.0
// The flags of `asynctls bench`.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/bench/recorder.h"
#include "client/bench/runner.h"
#include "client/bench/workload.h"
#include "client/flags.h"
#include "engine/base/json.h"

namespace asynctls {

struct BenchPlan {
  RunOptions run;
  WorkloadOptions workload;  // without the vocabulary, which the server knows
  GoodputLimits goodput;
  std::string report;  // file of the HTML report; empty = none
  bool json = false;
  Json flags;  // as given
};

const std::vector<FlagSpec>& BenchFlags();

// Errors: INVALID_ARGUMENT naming flag, value and limit.
absl::StatusOr<BenchPlan> BenchPlanFrom(const Flags& flags);

}  // namespace asynctls
