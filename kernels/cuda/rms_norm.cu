// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

constexpr int kThreads = kNormThreads, kHeld = kNormHeld;

// From every thread's part of the sum of squares.
__device__ float BlockInverse(float squares, int width, float eps) {
  __shared__ float parts[kThreads / 32];
  squares = WarpSum(squares);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = squares;
  __syncthreads();
  return InverseNorm(parts, width, eps);
}

__device__ float Scaled(float x, float inverse, bf16 weight) {
  return Widen(Narrow(x * inverse)) * Widen(weight);
}

// One block a row, the row in registers. Requires: width % 8 == 0, width <= kMostNormWidth.
__global__ void __launch_bounds__(kThreads) RmsNormKernel(
    const bf16* x, bf16* residual, const bf16* weight, int width, float eps, bf16* out) {
  GridTrigger();
  const int groups = width / 8;
  const int64_t begin = int64_t{blockIdx.x} * width;
  uint4 scale[kHeld];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {  // weights never change: read them before waiting
    const int i = static_cast<int>(threadIdx.x) + k * kThreads;
    if (i < groups) scale[k] = reinterpret_cast<const uint4*>(weight)[i];
  }
  GridWait();
  uint4 held[kHeld];
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = static_cast<int>(threadIdx.x) + k * kThreads;
    if (i >= groups) continue;
    held[k] = reinterpret_cast<const uint4*>(x + begin)[i];
    auto* v = reinterpret_cast<uint32_t*>(&held[k]);
    if (residual != nullptr) {
      uint4 r = reinterpret_cast<const uint4*>(residual + begin)[i];
      const auto* w = reinterpret_cast<const uint32_t*>(&r);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        v[j] = NarrowPair(WidenLow(w[j]) + WidenLow(v[j]), WidenHigh(w[j]) + WidenHigh(v[j]));
      }
      reinterpret_cast<uint4*>(residual + begin)[i] = held[k];
    }
    squares = AddSquares(held[k], squares);
  }
  const float inverse = BlockInverse(squares, width, eps);
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = static_cast<int>(threadIdx.x) + k * kThreads;
    if (i >= groups) continue;
    reinterpret_cast<uint4*>(out + begin)[i] = Normed(held[k], inverse, scale[k]);
  }
}

// Any width, through memory.
__global__ void __launch_bounds__(kThreads) RmsNormAnyKernel(
    const bf16* x, bf16* residual, const bf16* weight, int width, float eps, bf16* out) {
  GridTrigger();
  GridWait();
  const int64_t begin = int64_t{blockIdx.x} * width;
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) {
    float v = Widen(x[begin + i]);
    if (residual != nullptr) {
      residual[begin + i] = Narrow(Widen(residual[begin + i]) + v);
      v = Widen(residual[begin + i]);
    }
    squares = fmaf(v, v, squares);
  }
  const float inverse = BlockInverse(squares, width, eps);
  const bf16* from = residual != nullptr ? residual : x;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) {
    out[begin + i] = Narrow(Scaled(Widen(from[begin + i]), inverse, weight[i]));
  }
}

}  // namespace

void CudaOps::RmsNorm(const RmsNormArgs& a) {
  if (a.x.empty()) return;
  const int64_t width = a.weight.dim(0);
  const bool fast = width % 8 == 0 && width <= kMostNormWidth && Aligned(a.x.data) &&
                    Aligned(a.residual.data) && Aligned(a.weight.data) && Aligned(a.out.data);
  Launch(*state_,
         fast ? RmsNormKernel : RmsNormAnyKernel,
         dim3(static_cast<unsigned>(a.x.dim(0))),
         kThreads,
         0,
         a.x.data,
         a.residual.empty() ? nullptr : a.residual.data,
         a.weight.data,
         static_cast<int>(width),
         a.eps,
         a.out.data);
}

}  // namespace asynctls
