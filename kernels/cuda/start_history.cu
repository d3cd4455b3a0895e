// SPDX-License-Identifier: Apache-2.0
// Once per sequence with a penalty: one block clears the lane, then marks the prompt's ids.
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

constexpr int kThreads = 1024;

__global__ void __launch_bounds__(kThreads) StartHistoryKernel(
    uint16_t* generated, uint32_t* prompt, int64_t vocab, const uint32_t* ids, int64_t count) {
  GridWait();
  GridTrigger();
  for (int64_t i = threadIdx.x; i < vocab; i += kThreads) generated[i] = 0;
  for (int64_t i = threadIdx.x; i < (vocab + 31) / 32; i += kThreads) prompt[i] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    if (ids[i] < vocab) atomicOr(&prompt[ids[i] / 32], 1u << ids[i] % 32);
  }
}

}  // namespace

void CudaOps::StartHistory(const StartHistoryArgs& a) {
  Launch(*state_,
         StartHistoryKernel,
         dim3(1),
         kThreads,
         0,
         a.history.generated[a.lane].data,
         a.history.prompt[a.lane].data,
         a.history.generated.dim(1),
         a.prompt_ids.data,
         a.prompt_ids.dim(0));
}

}  // namespace asynctls
