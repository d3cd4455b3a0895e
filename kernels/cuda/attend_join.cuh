// SPDX-License-Identifier: Apache-2.0
// How the parts of split attention become one: those of a block's warps in its shared memory, those
// of a cluster's blocks by messages, those of other splits through memory.
#pragma once

#include <type_traits>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/warp_attend.cuh"
#include "kernels/ops.h"

namespace asynctls {

inline constexpr int kAttendWarps = 4;
inline constexpr int kAttendRanks = 8;  // splits of a cluster
inline constexpr int kFewSplits = 8;    // into which short rows are cut

struct AttendParams {
  const bf16* q;          // [S, Q, D]
  const bf16* kv;         // [N, G, P, 2D]
  const int32_t* slots;   // [L, M]
  const DecodeRow* rows;  // [S]
  const int32_t* tokens;  // [S, G, K], or null: all positions
  const int32_t* token_count;
  bf16* out;            // [S, Q D]
  float* part_out;      // [S, G, heads tile, splits, 8, D]
  float* part_largest;  // [S, G, heads tile, splits, 8]
  float* part_weight;
  uint32_t* arrived;    // [S, G, heads tile]
  int64_t table_width;  // M
  int64_t max_tokens;   // K
  int groups, heads;    // G, R
  int split_tokens;     // most positions of a split as long as there are few splits
  float scale;          // of q . k, times log2(e)
};

// What the warps of a block leave to each other.
template <int D>
struct Joined {
  float out[kAttendWarps][kColumns][D + 4];
  float largest[kAttendWarps][kColumns];
  float weight[kAttendWarps][kColumns];

  // A warp's part. A barrier must follow.
  __device__ void Leave(const WarpAttend<D>& state) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int column = lane % 4 * 2, d = lane / 4;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      out[warp][column][i * 16 + d] = state.out[i][0];
      out[warp][column + 1][i * 16 + d] = state.out[i][1];
      out[warp][column][i * 16 + d + 8] = state.out[i][2];
      out[warp][column + 1][i * 16 + d + 8] = state.out[i][3];
    }
    if (lane < 4) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        largest[warp][column + j] = state.largest[j];
        weight[warp][column + j] = state.weight[j];
      }
    }
  }
};

// Where a thread block of a cluster gets from all of them the largest logit and the weight of every
// head, and behind it [kAttendRanks][share] the values that it finishes.
struct Meeting {
  struct Scale {
    float largest, weight;
  };
  ByteBarrier there;
  alignas(16) Scale scale[kAttendRanks][kColumns];

  __device__ float* values() { return reinterpret_cast<float*>(this + 1); }
  __device__ __host__ static int Share(int heads, int dim) {
    return (heads * dim + kAttendRanks - 1) / kAttendRanks;
  }
  __device__ __host__ static size_t Bytes(int heads, int dim) {
    const size_t values = sizeof(float) * kAttendRanks * static_cast<size_t>(Share(heads, dim));
    return (sizeof(Meeting) + values + 15) / 16 * 16;
  }
};

// The largest of the parts' maxima, 0 where there is none.
template <int kParts, typename Largest>
__device__ inline float LargestOf(Largest largest) {
  float top = kNegativeInfinity;
#pragma unroll
  for (int i = 0; i < kParts; ++i) top = fmaxf(top, largest(i));
  return top == kNegativeInfinity ? 0 : top;
}

// Finishes the block's share of the values, when all blocks of the cluster have sent their parts.
// `count`: selected positions of the row.
template <int D, int kRanks>
__device__ inline void FinishShare(Meeting& meeting, int split, int heads, int count, bf16* out) {
  const int share = Meeting::Share(heads, D);
  const int own = max(0, min(share, heads * D - split * share));
  if (threadIdx.x == 0) {
    BarrierExpect(&meeting.there, static_cast<uint32_t>(kRanks * (4 * own + 8 * heads)));
  }
  BarrierWait(&meeting.there, 0);
  for (int j = static_cast<int>(threadIdx.x); j < own; j += 32 * kAttendWarps) {
    const int i = split * share + j, h = i / D;
    // A block without positions has weight 0 and, by LargestOf, a maximum that is not its own.
    float top = kNegativeInfinity, sum = 0, weight = 0;
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      const Meeting::Scale x = meeting.scale[r][h];
      top = x.weight > 0 ? fmaxf(top, x.largest) : top;
    }
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      const Meeting::Scale x = meeting.scale[r][h];
      const float factor = x.weight > 0 ? Exp2(x.largest - top) : 0;
      sum = fmaf(meeting.values()[r * share + j], factor, sum);
      weight = fmaf(x.weight, factor, weight);
    }
    out[i] = Narrow(count == 0 ? 0.0f : sum / weight);
  }
}

// Joins the parts of `splits` splits, which begin at number `parts` of those in memory: a warp a
// head; what the first few splits left is asked for together with their weights. Requires:
// splits <= 64, the most that MaxSplits gives.
template <int D>
__device__ inline void JoinSplits(
    const AttendParams& p, int64_t parts, int splits, int heads, bf16* out) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int h = warp; h < heads; h += kAttendWarps) {
    constexpr int kOfLane = D / 32, kMostSplits = 64, kHeld = kMostSplits / 32;
    using Values = std::conditional_t<kOfLane == 4, float4, float2>;
    auto values_of = [&](int k) {
      return __ldcg(reinterpret_cast<const Values*>(
          &p.part_out[((parts + int64_t{k} * kColumns) + h) * D + lane * kOfLane]));
    };
    Values first[kFewSplits];
#pragma unroll
    for (int k = 0; k < kFewSplits; ++k) {
      if (k < splits) first[k] = values_of(k);
    }
    float factor[kHeld], top = kNegativeInfinity, weight = 0;
#pragma unroll
    for (int n = 0; n < kHeld; ++n) {
      const int k = lane + 32 * n;
      factor[n] =
          k < splits ? __ldcg(&p.part_largest[parts + k * kColumns + h]) : kNegativeInfinity;
    }
    float weights[kHeld];
#pragma unroll
    for (int n = 0; n < kHeld; ++n) {
      const int k = lane + 32 * n;
      weights[n] = k < splits ? __ldcg(&p.part_weight[parts + k * kColumns + h]) : 0;
      top = fmaxf(top, factor[n]);
    }
    top = WarpMax(top);
    top = top == kNegativeInfinity ? 0 : top;
#pragma unroll
    for (int n = 0; n < kHeld; ++n) {
      factor[n] = Exp2(factor[n] - top);
      weight = fmaf(weights[n], factor[n], weight);
    }
    const float inverse = 1.0f / WarpSum(weight);
    float sum[kOfLane] = {};
    auto add = [&](int k, const Values& x) {
      const float f = __shfl_sync(kAllLanes, k < 32 ? factor[0] : factor[1], k % 32);
      const auto* v = reinterpret_cast<const float*>(&x);
#pragma unroll
      for (int j = 0; j < kOfLane; ++j) sum[j] = fmaf(v[j], f, sum[j]);
    };
#pragma unroll
    for (int k = 0; k < kFewSplits; ++k) {
      if (k < splits) add(k, first[k]);
    }
#pragma unroll 8
    for (int k = kFewSplits; k < splits; ++k) add(k, values_of(k));
    auto* to = reinterpret_cast<uint32_t*>(out + h * D + lane * kOfLane);
#pragma unroll
    for (int j = 0; j < kOfLane / 2; ++j) {
      to[j] = NarrowPair(sum[2 * j] * inverse, sum[2 * j + 1] * inverse);
    }
  }
}

}  // namespace asynctls
