// SPDX-License-Identifier: Apache-2.0
// Softmax attention of one decode row over tiles of 16 positions by one warp, up to eight query
// heads at a time.
#pragma once

#include "kernels/cuda/primitives.cuh"

namespace asynctls {

inline constexpr int kTile = 16;    // positions
inline constexpr int kColumns = 8;  // query heads

template <int D>
struct WarpAttend {
  static constexpr int kChunks = 2 * D * 2 / 16;  // 16-byte pieces of a row [K | V]
  static constexpr int kTileBytes = kTile * 2 * D * 2;

  uint32_t q[D / 16][2];
  float out[D / 16][4];
  float largest[2];
  float weight[2];

  // The address of 16-byte piece `chunk` of row `row` of a tile. The pieces of a row are turned by
  // its number so that eight rows of one column lie in different banks.
  __device__ static uint32_t Piece(uint32_t tile, int row, int chunk) {
    return tile + static_cast<uint32_t>((row * kChunks + (chunk ^ (row & 7))) * 16);
  }

  // `query`: the first head of the tile; `heads` of the eight columns exist.
  __device__ void Start(const bf16* query, int heads) {
    const int lane = threadIdx.x % 32, column = lane / 4, k = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      const auto* words = reinterpret_cast<const uint32_t*>(query + column * D + i * 16 + k);
      q[i][0] = column < heads ? words[0] : 0;
      q[i][1] = column < heads ? words[4] : 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) out[i][j] = 0;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      largest[j] = kNegativeInfinity;
      weight[j] = 0;
    }
  }

  // Adds the first `count` rows of a tile: first by its keys, then by its values.
  __device__ void Add(uint32_t tile, int count, float scale) {
    uint32_t weights[2];
    AddKeys(tile, count, scale, weights);
    AddValues(tile, weights);
  }
  // `weights`: of the rows, for AddValues.
  __device__ void AddKeys(uint32_t tile, int count, float scale, uint32_t (&weights)[2]) {
    const int lane = threadIdx.x % 32;
    float s[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      uint32_t k[4];
      LoadMatrix4(k, Piece(tile, lane % 16, 2 * i + lane / 16));
      MultiplyAdd(s, k, q[i][0], q[i][1]);
    }
    const int row = lane / 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      s[j] = row + (j / 2) * 8 < count ? s[j] * scale : kNegativeInfinity;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float top = fmaxf(s[j], s[j + 2]);
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 4));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 8));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 16));
      top = fmaxf(top, largest[j]);
      const float shift = top == kNegativeInfinity ? 0 : top;
      const float shrink = Exp2(largest[j] - shift);
      largest[j] = top;
      s[j] = Exp2(s[j] - shift);
      s[j + 2] = Exp2(s[j + 2] - shift);
      weight[j] = fmaf(weight[j], shrink, s[j] + s[j + 2]);
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        out[i][j] *= shrink;
        out[i][j + 2] *= shrink;
      }
    }
    weights[0] = TransposeMatrix(NarrowPair(s[0], s[1]));
    weights[1] = TransposeMatrix(NarrowPair(s[2], s[3]));
  }
  __device__ void AddValues(uint32_t tile, const uint32_t (&weights)[2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      uint32_t v[4];
      LoadMatrix4Transposed(v, Piece(tile, lane % 8 + lane / 16 * 8, D / 8 + 2 * i + lane / 8 % 2));
      MultiplyAdd(out[i], v, weights[0], weights[1]);
    }
  }

  // The weights of a column, over the warp.
  __device__ void SumWeights() {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      weight[j] += __shfl_xor_sync(kAllLanes, weight[j], 4);
      weight[j] += __shfl_xor_sync(kAllLanes, weight[j], 8);
      weight[j] += __shfl_xor_sync(kAllLanes, weight[j], 16);
    }
  }
};

}  // namespace asynctls
