// SPDX-License-Identifier: Apache-2.0
// Softmax attention of one query over a list of positions by one warp: any head dim, not fast. What
// the kernels of head dims 64 and 128 leave over.
#pragma once

#include "kernels/cuda/primitives.cuh"
#include "kernels/ops.h"

namespace asynctls {

// out [dim] = attention of q [dim] over position(0) .. position(count - 1) of a lane with these
// `slots`, KV head g of `groups`; zeros for none. `scale`: of q . k, times log2(e). `sum` [dim] is
// shared memory.
template <typename Position>
__device__ inline void AttendPlainly(const bf16* q,
                                     const bf16* kv,
                                     const int32_t* slots,
                                     int groups,
                                     int g,
                                     int dim,
                                     int count,
                                     Position position,
                                     float scale,
                                     float* sum,
                                     bf16* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int d = lane; d < dim; d += 32) sum[d] = 0;
  float largest = kNegativeInfinity, weight = 0;
  for (int i = 0; i < count; ++i) {
    const int at = position(i);
    const int64_t slot = slots[at / kBlockPositions];
    const bf16* k = kv + ((slot * groups + g) * kBlockPositions + at % kBlockPositions) * 2 * dim;
    float dot = 0;
    for (int d = lane; d < dim; d += 32) dot = fmaf(Widen(q[d]), Widen(k[d]), dot);
    const float logit = WarpSum(dot) * scale, top = fmaxf(largest, logit);
    const float shrink = Exp2(largest - top), w = Exp2(logit - top);
    largest = top;
    weight = fmaf(weight, shrink, w);
    for (int d = lane; d < dim; d += 32) sum[d] = fmaf(w, Widen(k[dim + d]), sum[d] * shrink);
  }
  for (int d = lane; d < dim; d += 32) out[d] = Narrow(count == 0 ? 0.0f : sum[d] / weight);
}

}  // namespace asynctls
