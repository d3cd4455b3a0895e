// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

// In double, so that the table is the correctly rounded one nearly everywhere; it is made once per
// step.
__global__ void RopeTableKernel(
    const int32_t* positions, const float* inv_frequency, float scale, int half, float* cos_sin) {
  GridTrigger();
  GridWait();
  float* row = cos_sin + int64_t{blockIdx.x} * 2 * half;
  for (int i = static_cast<int>(threadIdx.x); i < half; i += static_cast<int>(blockDim.x)) {
    const float angle = static_cast<float>(positions[blockIdx.x]) * inv_frequency[i];
    double sine, cosine;
    sincos(static_cast<double>(angle), &sine, &cosine);
    row[i] = static_cast<float>(cosine) * scale;
    row[half + i] = static_cast<float>(sine) * scale;
  }
}

}  // namespace

void CudaOps::RopeTable(const RopeTableArgs& a) {
  if (a.positions.empty()) return;
  Launch(*state_,
         RopeTableKernel,
         dim3(static_cast<unsigned>(a.positions.dim(0))),
         64,
         0,
         a.positions.data,
         a.inv_frequency.data,
         a.scale,
         static_cast<int>(a.inv_frequency.dim(0)),
         a.cos_sin.data);
}

}  // namespace asynctls
