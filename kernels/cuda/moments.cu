// SPDX-License-Identifier: Apache-2.0
// Sums and second moments, in double and in the order of the rows: calibration runs once.
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

__global__ void MomentsKernel(
    const bf16* x, int64_t count, int64_t stride, int dim, double* second, double* first) {
  GridWait();
  GridTrigger();
  const int d = static_cast<int>(blockIdx.x);
  for (int e = static_cast<int>(threadIdx.x); e < dim; e += static_cast<int>(blockDim.x)) {
    double sum = second[int64_t{d} * dim + e];
    for (int64_t i = 0; i < count; ++i) {
      sum += static_cast<double>(Widen(x[i * stride + d])) *
             static_cast<double>(Widen(x[i * stride + e]));
    }
    second[int64_t{d} * dim + e] = sum;
  }
  if (threadIdx.x != 0) return;
  double sum = first[d];
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(Widen(x[i * stride + d]));
  first[d] = sum;
}

}  // namespace

void CudaOps::Moments(const MomentsArgs& a) {
  if (a.count == 0) return;
  const int64_t dim = a.first.dim(0);
  Launch(*state_,
         MomentsKernel,
         dim3(static_cast<unsigned>(dim)),
         128,
         0,
         a.x,
         a.count,
         a.stride,
         static_cast<int>(dim),
         a.second.data,
         a.first.data);
}

}  // namespace asynctls
