// SPDX-License-Identifier: Apache-2.0
// Backend: how a rank gets its ops. They are made when it is known what for, and what a rank needs
// is planned with what they need.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "engine/worker/rank_plan.h"
#include "kernels/ops.h"

namespace asynctls {

template <Ops B>
struct Backend {
  // Bytes that may still be allocated where it computes.
  int64_t available;
  // Its scratch memory for a rank of this plan.
  std::function<int64_t(const RankPlan&)> workspace;
  // Called once, on the thread that will use the ops.
  absl::AnyInvocable<absl::StatusOr<std::unique_ptr<B>>(const RankPlan&)> make;

  Backend() = default;
  // Of host memory. Its scratch memory grows on first use of a shape: allowed for, not known.
  Backend(std::unique_ptr<B> ops)  // NOLINT: a backend that needs no plan is its ops
      : available(AvailableMemory()),
        workspace([](const RankPlan&) { return int64_t{64} << 20; }),
        make([ops = std::move(ops)](const RankPlan&) mutable { return std::move(ops); }) {}

  BackendTraits traits() const {
    return {.available = available,
            .workspace = workspace,
            .split_passes = B::kSplitPasses,
            .bound_selector = BoundOps<B>};
  }
};

}  // namespace asynctls
