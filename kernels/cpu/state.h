// SPDX-License-Identifier: Apache-2.0
// What the ops of one CpuOps share: the threads with a scratch memory each, and oneDNN with its
// cached primitives (kernels/cpu/gemm.cc). Private to kernels/cpu.
//
// How an op is written: the file is compiled once per instruction set by Highway
// (foreach_target.h); inside HWY_NAMESPACE live plain functions that handle one work item; below,
// under HWY_ONCE, CpuOps::X cuts the work into items and calls HWY_DYNAMIC_DISPATCH(Item) from a
// ParallelFor lambda. Lambdas and OpenMP regions stay out of HWY_NAMESPACE: gcc does not hand them
// the enclosing function's instruction set.
#pragma once

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/thread_team.h"

namespace asynctls {

struct CpuOps::State {
  explicit State(int threads) : team(threads) {}

  ThreadTeam team;
  OneDnn one_dnn;
};

}  // namespace asynctls
