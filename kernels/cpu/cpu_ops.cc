// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/state.h"

namespace asynctls {

CpuOps::CpuOps(int threads) : state_(std::make_unique<State>(threads)) {}
CpuOps::~CpuOps() = default;

int CpuOps::threads() const { return state_->team.count(); }

}  // namespace asynctls
