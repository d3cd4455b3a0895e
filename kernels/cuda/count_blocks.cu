// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

// One block a row: the tokens of a KV head are sorted, so a block of positions is counted where
// its first token is met.
__global__ void CountBlocksKernel(const int32_t* tokens,
                                  const int32_t* token_count,
                                  int64_t groups,
                                  int64_t max_tokens,
                                  int64_t max_blocks,
                                  bool add,
                                  int32_t* heat) {
  GridWait();
  GridTrigger();
  const int64_t s = blockIdx.x;
  int32_t* row = heat + s * max_blocks;
  for (int64_t b = threadIdx.x; b < max_blocks && !add; b += blockDim.x) row[b] = 0;
  __syncthreads();
  for (int64_t g = 0; g < groups; ++g) {
    const int32_t* list = tokens + (s * groups + g) * max_tokens;
    const int32_t count = token_count[s * groups + g];
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count;
         i += static_cast<int32_t>(blockDim.x)) {
      const int32_t block = list[i] / kBlockPositions;
      if (i == 0 || list[i - 1] / kBlockPositions != block) atomicAdd(&row[block], 1);
    }
  }
}

}  // namespace

void CudaOps::CountBlocks(const CountBlocksArgs& a) {
  if (a.heat.empty()) return;
  Launch(*state_,
         CountBlocksKernel,
         dim3(static_cast<unsigned>(a.heat.dim(0))),
         256,
         0,
         a.selection.tokens.data,
         a.selection.token_count.data,
         a.selection.tokens.dim(1),
         a.selection.tokens.dim(2),
         a.heat.dim(1),
         a.add,
         a.heat.data);
}

}  // namespace asynctls
