// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpu_ops.h"

#include <string>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/state.h"

namespace asynctls {

CpuOps::CpuOps(int threads) : state_(std::make_unique<State>(threads)) {}
CpuOps::~CpuOps() = default;

int CpuOps::threads() const { return state_->team.count(); }

std::string CpuOps::Describe() const {
  return "CPU, " + std::to_string(threads()) + (threads() == 1 ? " thread" : " threads") +
         (amx::Usable() ? ", AMX" : "");
}

}  // namespace asynctls
