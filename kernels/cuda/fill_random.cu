// SPDX-License-Identifier: Apache-2.0
// A thread a value: drawing is cheaper than writing what was drawn.
#include <algorithm>

#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"
#include "kernels/device/splitmix.h"

namespace asynctls {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) FillRandomKernel(bf16* out,
                                                             int64_t rows,
                                                             int64_t columns,
                                                             uint64_t key,
                                                             int64_t first,
                                                             int64_t stride,
                                                             float centre,
                                                             float spread) {
  GridWait();
  GridTrigger();
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= columns) return;
  for (int64_t i = blockIdx.y; i < rows; i += gridDim.y) {
    const int64_t c = first + i * stride + j;
    const uint64_t bits = SplitMix64(key + static_cast<uint64_t>(c / 4));
    const auto draw = static_cast<int16_t>(bits >> (16 * (c % 4)));
    out[i * columns + j] = Narrow(centre + spread * static_cast<float>(draw));
  }
}

}  // namespace

void CudaOps::FillRandom(const FillRandomArgs& a) {
  if (a.out.empty()) return;
  const int64_t rows = a.out.dim(0), columns = a.out.dim(1);
  const dim3 grid(static_cast<unsigned>((columns + kThreads - 1) / kThreads),
                  static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
  Launch(*state_,
         FillRandomKernel,
         grid,
         kThreads,
         0,
         a.out.data,
         rows,
         columns,
         a.key,
         a.first,
         a.stride,
         a.centre,
         a.spread);
}

}  // namespace asynctls
