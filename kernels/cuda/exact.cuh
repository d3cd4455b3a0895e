// SPDX-License-Identifier: Apache-2.0
// kernels/ref/exact.h on the GPU: the same functions, bit for bit. The target is compiled with
// --fmad=false, so that an fma is where the source says so.
#pragma once

#include <cstdint>

#include "kernels/ref/exact.h"

namespace asynctls::gpu {

// Chains of ExactProduct over d = j, j + 4, ...; x(d) and table(d) give the factors.
template <typename X, typename Table>
__device__ inline float ExactProduct(int d_count, X x, Table table) {
  float a[4] = {0, 0, 0, 0};
  int d = 0;
#pragma unroll 4
  for (; d + 4 <= d_count; d += 4) {
#pragma unroll
    for (int j = 0; j < 4; ++j) a[j] = fmaf(x(d + j), table(d + j), a[j]);
  }
  for (int j = 0; d + j < d_count; ++j) {
    if (j == 0) a[0] = fmaf(x(d), table(d), a[0]);
    if (j == 1) a[1] = fmaf(x(d + 1), table(d + 1), a[1]);
    if (j == 2) a[2] = fmaf(x(d + 2), table(d + 2), a[2]);
  }
  return (a[0] + a[1]) + (a[2] + a[3]);
}

__device__ inline uint32_t CodeOf(float x) {
  if (isnan(x)) return 8;
  const float c = floorf(x) + 8.0f;
  return static_cast<uint32_t>(c < 0.0f ? 0.0f : c > 15.0f ? 15.0f : c);
}

// Near this float only whole numbers are floats, and the bits count them.
constexpr float kWhole = 0x1.8p23f;
constexpr int kWholeBits = 0x4b400000;

// As a float, |x| < 2^22: by an addition, which there are more units for than for conversions.
__device__ inline float FloatOf(int x) { return __int_as_float(kWholeBits + x) - kWhole; }

// Without branches: what is out of range is worked out at its end. The floor comes from an addition
// that is rounded down.
__device__ inline uint32_t FixedExp2(float y) {
  const float x = fminf(fmaxf(y, -24.0f), 0.0f), floored = __fadd_rd(x, kWhole);
  const float f = x - (floored - kWhole);
  float p = 0x1.ee382ap-10f;
  p = fmaf(p, f, 0x1.260a28p-7f);
  p = fmaf(p, f, 0x1.c9686cp-5f);
  p = fmaf(p, f, 0x1.ebd53cp-3f);
  p = fmaf(p, f, 0x1.62e4e2p-1f);
  p = fmaf(p, f, 1.0f);
  const int exponent = __float_as_int(floored) - kWholeBits + 24 + 127;
  const uint32_t fixed = __float2uint_rn(p * __int_as_float(exponent << 23));
  return y >= -24.0f ? fixed : 0;
}

__device__ inline uint32_t OrderedKey(float score) {
  if (isnan(score)) return 0;
  const uint32_t u = __float_as_uint(score + 0.0f);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// The score back from its key; NaN for 0.
__device__ inline float ScoreOfKey(uint32_t key) {
  if (key == 0) return __uint_as_float(0x7fc00000u);
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ inline bool BlockIsForced(int block, int block_count) {
  return block == 0 || block + 2 >= block_count;
}
__device__ inline bool TokenIsForced(int position, int length) {
  return position < kSinkPositions || position + kWindowPositions >= length;
}

__device__ inline uint64_t FixedScore(float score) {
  return static_cast<uint64_t>(score * 0x1p32f);
}

}  // namespace asynctls::gpu
