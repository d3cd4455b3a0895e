// SPDX-License-Identifier: Apache-2.0
// What Sample and LogProbs do alike with a row of logits: ids in their order, and sums of weights
// that do not depend on the order of addition.
#pragma once

#include <cstdint>

#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/primitives.cuh"

namespace asynctls {

// Larger for what comes first: the larger logit, of equal ones (and of NaNs) the lower id.
// `key`: gpu::OrderedKey of the logit.
__device__ inline uint64_t RankOf(uint32_t key, int64_t id) {
  return uint64_t{key} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ inline int32_t IdOfRank(uint64_t rank) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(rank));
}
__device__ inline uint32_t KeyOfRank(uint64_t rank) { return static_cast<uint32_t>(rank >> 32); }

// A weight of 0 to 1 as an integer. Sums of it fit 64 bits, and are the same in every order.
inline constexpr int kWeightBits = 38;
__device__ inline uint64_t FixedWeight(float weight) {
  return static_cast<uint64_t>(weight * static_cast<float>(uint64_t{1} << kWeightBits));
}
// exp(logit - largest); 0 where that is not a number.
__device__ inline float Weight(float logit, float largest) {
  const float weight = expf(logit - largest);
  return isnan(weight) ? 0.0f : weight;
}
__device__ inline double LogOfSum(uint64_t sum) {
  return log(static_cast<double>(sum) / static_cast<double>(uint64_t{1} << kWeightBits));
}

__device__ inline uint64_t WarpSum64(uint64_t x) {
  for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(kAllLanes, x, i);
  return x;
}
__device__ inline uint64_t WarpMax64(uint64_t x) {
  for (int i = 16; i > 0; i >>= 1) x = max(x, __shfl_xor_sync(kAllLanes, x, i));
  return x;
}

}  // namespace asynctls
