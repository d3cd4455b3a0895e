// SPDX-License-Identifier: Apache-2.0
// Whole rows of x in the shared memory of a thread block of kNormThreads, where decode products of
// one or two rows read them: copied, or normed on the way with the bits of RmsNorm.
#pragma once

#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/row_math.cuh"

namespace asynctls {

constexpr int kPiece = 64;          // of K, that a warp reads at a time
constexpr int kMostNormedRows = 2;  // that a product norms itself

// Whole rows of x lie so far apart in shared memory that two of them do not meet in a bank.
__device__ __host__ constexpr int RowStride(int width) { return width + kPiece / 2; }

// The norm of the rows of x, at most kMostNormedRows, on their way to shared memory: a thread's
// part of them. Requires: width <= kMostNormWidth.
struct RowsToNorm {
  uint4 scale[kNormHeld], held[kMostNormedRows][kNormHeld];

  template <typename Body>
  __device__ static void Each(int width, Body body) {
#pragma unroll
    for (int k = 0; k < kNormHeld; ++k) {
      const int i = static_cast<int>(threadIdx.x) + k * kNormThreads;
      if (i < width / 8) body(k, i);
    }
  }
  __device__ void AskWeight(const bf16* norm, int width) {
    Each(width, [&](int k, int i) { scale[k] = reinterpret_cast<const uint4*>(norm)[i]; });
  }
  __device__ void AskRows(const bf16* x, int rows, int width) {
#pragma unroll
    for (int row = 0; row < kMostNormedRows; ++row) {
      if (row >= rows) break;
      const auto* from = reinterpret_cast<const uint4*>(x + int64_t{row} * width);
      Each(width, [&](int k, int i) { held[row][k] = from[i]; });
    }
  }
  // By all threads of the block.
  __device__ void Finish(int rows, int width, float eps, bf16* out) const {
    __shared__ float squares[kMostNormedRows][kNormThreads / 32];
#pragma unroll
    for (int row = 0; row < kMostNormedRows; ++row) {
      if (row >= rows) break;
      float sum = 0;
      Each(width, [&](int k, int) { sum = AddSquares(held[row][k], sum); });
      sum = WarpSum(sum);
      if (threadIdx.x % 32 == 0) squares[row][threadIdx.x / 32] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int row = 0; row < kMostNormedRows; ++row) {
      if (row >= rows) break;
      const float inverse = InverseNorm(squares[row], width, eps);
      auto* to = reinterpret_cast<uint4*>(out + row * RowStride(width));
      Each(width, [&](int k, int i) { to[i] = Normed(held[row][k], inverse, scale[k]); });
    }
    __syncthreads();
  }
};

// Starts the copy of the rows of x [rows, width] to shared memory, by all threads.
__device__ inline void CopyRows(const bf16* x, int rows, int width, bf16* to) {
  for (int row = 0; row < rows; ++row) {
    const uint32_t at = SharedAddress(to + row * RowStride(width));
    for (int i = static_cast<int>(threadIdx.x); i < width / 8; i += kNormThreads) {
      CopyAsync16(at + static_cast<uint32_t>(i) * 16, x + int64_t{row} * width + 8 * i);
    }
  }
}

}  // namespace asynctls
