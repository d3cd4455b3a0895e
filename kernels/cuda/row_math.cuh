// SPDX-License-Identifier: Apache-2.0
// What the norm and the gate share with the products that begin or end with one, so that both give
// the same bits. A row to be normed is spread over a block's threads in pieces of 8 values.
#pragma once

#include "kernels/cuda/primitives.cuh"

namespace asynctls {

inline constexpr int kNormThreads = 256;
inline constexpr int kNormHeld = 4;  // pieces of a thread
inline constexpr int kMostNormWidth = 8 * kNormThreads * kNormHeld;

// A thread's part of a row's sum of squares: a chain over its pieces, in their order.
__device__ inline float AddSquares(const uint4& piece, float squares) {
  const uint32_t v[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    squares = fmaf(WidenLow(v[j]), WidenLow(v[j]), squares);
    squares = fmaf(WidenHigh(v[j]), WidenHigh(v[j]), squares);
  }
  return squares;
}

// From the sums of the block's warps.
__device__ inline float InverseNorm(const float* warp_squares, int width, float eps) {
  float total = 0;
  for (int i = 0; i < kNormThreads / 32; ++i) total += warp_squares[i];
  return 1.0f / sqrtf(total / static_cast<float>(width) + eps);
}

__device__ inline uint32_t NormedPair(uint32_t x, float inverse, uint32_t weight) {
  const uint32_t n = NarrowPair(WidenLow(x) * inverse, WidenHigh(x) * inverse);
  return NarrowPair(WidenLow(n) * WidenLow(weight), WidenHigh(n) * WidenHigh(weight));
}
__device__ inline uint4 Normed(const uint4& x, float inverse, const uint4& weight) {
  return make_uint4(NormedPair(x.x, inverse, weight.x),
                    NormedPair(x.y, inverse, weight.y),
                    NormedPair(x.z, inverse, weight.z),
                    NormedPair(x.w, inverse, weight.w));
}

// silu(gate) up
__device__ inline float Gated(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

}  // namespace asynctls
