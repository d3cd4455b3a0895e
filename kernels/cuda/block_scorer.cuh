// SPDX-License-Identifier: Apache-2.0
// Scores blocks of positions by part 1 of their codes: what a warp of select_blocks.cu does with
// four blocks at a time. The codes' bytes, unpacked, are the rows of an integer matrix product
// whose columns are the query heads; the maximum over a block's positions is taken over integers,
// before scale and head.
//
// A lane takes its bits of every byte to the byte's top, which makes them 16 times the code, by a
// product: for shifts there are only the units that masks and maxima need.
#pragma once

#include <climits>

#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/ops.h"

namespace asynctls {

constexpr int kGroup = 4;  // blocks that a warp scores at a time
constexpr int kBlockBytes = kCodeWords * kBlockPositions * 4;  // part 1 of one head
constexpr int kColumns = 8;                                    // query heads of a product
constexpr int kFineWords = kFineDirections / 4, kCoarseWords = kCoarseDirections / 4;
constexpr uint32_t kFineTop = 0xf0f0f0f0u, kCoarseTop = 0xc0c0c0c0u;

// The factors that take to a byte's top its fine direction i of two, its coarse one i of four.
__device__ inline uint32_t FineFactor(int i) { return i == 0 ? 16 : 1; }
__device__ inline uint32_t CoarseFactor(int i) { return 64u >> 2 * i; }

// What the product of an all-zero code word would be, codes being 2 c - 15.
__device__ inline int ZeroProduct(const int8_t* code8) {
  const auto* q = reinterpret_cast<const int*>(code8);
  int zero = 0;
#pragma unroll
  for (int i = 0; i < kFineWords + kCoarseWords; ++i) {
    zero -= __dp4a(q[i], i < kFineWords ? 0x0f0f0f0f : 0x0c0c0c0c, 0);
  }
  return zero;
}

// The maximum over the eight quads of a warp: quad i gets that of top[i].
__device__ inline int LargestOfQuads(int (&top)[2 * kGroup]) {
  const int quad = threadIdx.x % 32 / 4;
#pragma unroll
  for (int half = kGroup; half > 0; half >>= 1) {
    const bool upper = quad & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const int keep = upper ? top[i + half] : top[i];
      const int give = upper ? top[i] : top[i + half];
      top[i] = max(keep, __shfl_xor_sync(kAllLanes, give, 4 * half));
    }
  }
  return top[0];
}

// Up to four heads: the eight columns are the heads twice, for two positions in each row of the
// product, of which lanes t = 0, 1 of a quad unpack one and lanes 2, 3 the other. Each lane then
// reads half of what BlockScorer's do (shared memory is what bounds the scoring), and all of them
// have maxima to take.
struct PairScorer {
  static constexpr int kHeads = 4;
  uint32_t b[3];  // the codes of the queries, as columns
  float scale;    // of the lane's head, 2 (t % 2) + quad % 2; NaN: left out
  int zero;
  uint32_t coarse_factor[2], fine_factor;

  // `code8` [R, r], `turned_scale` [R] in global memory.
  __device__ PairScorer(const int8_t* code8, const float* turned_scale, int heads) {
    const int lane = threadIdx.x % 32, t = lane % 4, quad = lane / 4;
    const int position = t / 2, part = t % 2;
    coarse_factor[0] = CoarseFactor(2 * part);
    coarse_factor[1] = CoarseFactor(2 * part + 1);
    fine_factor = FineFactor(part);
    const int column = quad % kHeads, own = 2 * part + quad % 2;
    b[0] = b[1] = b[2] = 0;
    if (quad / kHeads == position && column < heads) {
      const auto* q = reinterpret_cast<const uint32_t*>(code8 + column * kCodeDirections);
      b[0] = q[kFineWords + 2 * part];
      b[1] = q[kFineWords + 2 * part + 1];
      b[2] = q[part];
    }
    scale = own < heads ? turned_scale[own] : __uint_as_float(0x7fc00000u);
    zero = own < heads ? ZeroProduct(code8 + own * kCodeDirections) : 0;
  }

  // The key of block quad / 2 of the group. `codes`: part 1 of the blocks in shared memory.
  __device__ uint32_t Key(const uint32_t* codes) const {
    const int lane = threadIdx.x % 32, quad = lane / 4, position = lane % 4 / 2;
    int top[2 * kGroup];
#pragma unroll
    for (int block = 0; block < kGroup; ++block) {
      const uint32_t* words = codes + block * (kBlockBytes / 4) + 4 * (2 * quad + position);
      const uint4 f = *reinterpret_cast<const uint4*>(words);
      const uint4 c = *reinterpret_cast<const uint4*>(words + kBlockPositions);
      const uint32_t fine[4] = {f.x, f.y, f.z, f.w}, coarse[4] = {c.x, c.y, c.z, c.w};
      top[2 * block] = top[2 * block + 1] = INT_MIN;
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const uint32_t a[4] = {coarse[i] * coarse_factor[0] & kCoarseTop,
                               coarse[i + 1] * coarse_factor[0] & kCoarseTop,
                               coarse[i] * coarse_factor[1] & kCoarseTop,
                               coarse[i + 1] * coarse_factor[1] & kCoarseTop};
        int sum[4];
        MultiplyBytes(sum, a, b[0], b[1]);
        MultiplyAddBytes(
            sum, fine[i] * fine_factor & kFineTop, fine[i + 1] * fine_factor & kFineTop, b[2]);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          top[2 * block + j] = __vimax3_s32(top[2 * block + j], sum[j], sum[j + 2]);
        }
      }
    }
    int largest = LargestOfQuads(top);
    largest = max(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const float score = static_cast<float>((largest >> 3) + zero) * scale;
    float best = isnan(scale) ? kNegativeInfinity : fmaxf(kNegativeInfinity, score);
    best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
    best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 4));
    return gpu::OrderedKey(best);
  }
};

// Any number of heads, kTiles columns of eight. Lane (quad, t) works on positions 4 quad .. + 3 and
// 32 + 4 quad .. + 3 of each block, and ends up with head 2 t + quad % 2 of block quad / 2.
template <int kTiles>
struct BlockScorer {
  uint32_t b[kTiles][2];  // the codes of the queries, as columns
  float scale[kTiles];    // of the lane's head; NaN: left out
  int zero[kTiles];       // what the product of an all-zero code word would be
  uint32_t coarse_factor, fine_factor;

  // `code8` [R, r], `turned_scale` [R] in global memory.
  __device__ BlockScorer(const int8_t* code8, const float* turned_scale, int heads) {
    const int lane = threadIdx.x % 32, t = lane % 4, quad = lane / 4;
    coarse_factor = CoarseFactor(t);
    fine_factor = FineFactor(t % 2);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int column = tile * kColumns + quad, own = tile * kColumns + 2 * t + quad % 2;
      b[tile][0] = b[tile][1] = 0;
      if (column < heads) {
        const auto* q = reinterpret_cast<const uint32_t*>(code8 + column * kCodeDirections);
        b[tile][0] = q[kFineWords + t];
        b[tile][1] = t < 2 ? q[t] : 0;
      }
      scale[tile] = own < heads ? turned_scale[own] : __uint_as_float(0x7fc00000u);
      zero[tile] = own < heads ? ZeroProduct(code8 + own * kCodeDirections) : 0;
    }
  }

  // The key of block quad / 2 of the group. `codes`: part 1 of the blocks in shared memory.
  __device__ uint32_t Key(const uint32_t* codes) const {
    const int lane = threadIdx.x % 32, quad = lane / 4;
    float best = kNegativeInfinity;
    int top[kTiles][2 * kGroup];
#pragma unroll
    for (int block = 0; block < kGroup; ++block) {
      const uint32_t* words = codes + block * (kBlockBytes / 4) + 4 * quad;
      const uint4 f0 = *reinterpret_cast<const uint4*>(words);
      const uint4 f1 = *reinterpret_cast<const uint4*>(words + 32);
      const uint4 c0 = *reinterpret_cast<const uint4*>(words + kBlockPositions);
      const uint4 c1 = *reinterpret_cast<const uint4*>(words + kBlockPositions + 32);
      const uint32_t fine[2][4] = {{f0.x, f0.y, f0.z, f0.w}, {f1.x, f1.y, f1.z, f1.w}};
      const uint32_t coarse[2][4] = {{c0.x, c0.y, c0.z, c0.w}, {c1.x, c1.y, c1.z, c1.w}};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        top[tile][2 * block] = top[tile][2 * block + 1] = INT_MIN;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // Where a column has no direction (t >= 2 of the fine ones) its bytes meet zeros.
          const uint32_t a[4] = {coarse[0][i] * coarse_factor & kCoarseTop,
                                 coarse[1][i] * coarse_factor & kCoarseTop,
                                 fine[0][i] * fine_factor & kFineTop,
                                 fine[1][i] * fine_factor & kFineTop};
          int c[4];
          MultiplyBytes(c, a, b[tile][0], b[tile][1]);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            top[tile][2 * block + j] = __vimax3_s32(top[tile][2 * block + j], c[j], c[j + 2]);
          }
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int largest = LargestOfQuads(top[tile]);
      const float score = static_cast<float>((largest >> 3) + zero[tile]) * scale[tile];
      best = isnan(scale[tile]) ? best : fmaxf(best, score);
    }
    best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
    best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
    best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 4));
    return gpu::OrderedKey(best);
  }
};

}  // namespace asynctls
