// SPDX-License-Identifier: Apache-2.0
// QK-norm, rotation, the append of K | V, and the key's code: one warp a head of a token.
#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

constexpr int kWarps = 4;
constexpr int kHeld = 8;  // pairs (i, i + D/2) that a lane holds: head dims to 512

struct Params {
  const bf16* qkv;
  const bf16* q_norm;
  const bf16* k_norm;
  const float* cos_sin;
  const int32_t* lanes;
  const int32_t* positions;
  const int32_t* slot_table;
  const float* encode;  // null: no codes
  const float* offset;
  bf16* q_out;
  bf16* kv;
  uint32_t* first;
  uint32_t* second;
  int64_t table_width;  // M
  int q_heads, kv_heads, dim;
  float eps;
};

// out = rotate(norm(x)).
__device__ void NormAndTurn(
    const bf16* x, const bf16* weight, float eps, int dim, const float* cos_sin, bf16* out) {
  const int lane = threadIdx.x % 32, half = dim / 2;
  float low[kHeld], high[kHeld], squares = 0;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = lane + 32 * k;
    low[k] = i < half ? Widen(x[i]) : 0;
    high[k] = i < half ? Widen(x[i + half]) : 0;
    squares = fmaf(low[k], low[k], fmaf(high[k], high[k], squares));
  }
  const float inverse = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(dim) + eps);
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = lane + 32 * k;
    if (i >= half) continue;
    const float a = Widen(Narrow(Widen(Narrow(low[k] * inverse)) * Widen(weight[i])));
    const float b = Widen(Narrow(Widen(Narrow(high[k] * inverse)) * Widen(weight[i + half])));
    const float cosine = cos_sin[i], sine = cos_sin[i + half];
    out[i] = Narrow(a * cosine - b * sine);
    out[i + half] = Narrow(b * cosine + a * sine);
  }
}

// The code of the key just written, lane c working out direction c.
__device__ void AppendCode(const Params& p, const bf16* key, int g, int64_t place, int in_block) {
  const int c = threadIdx.x % 32;
  const float* table = p.encode + int64_t{g} * p.dim * kCodeDirections + c;
  const float product = gpu::ExactProduct(
      p.dim,
      [&](int d) { return Widen(key[d]); },
      [&](int d) { return table[d * kCodeDirections]; });
  const uint32_t code = gpu::CodeOf(product - p.offset[g * kCodeDirections + c]);
  constexpr int kRest = kFineDirections + kCoarseDirections;
  uint32_t fine = 0, high = 0, low = 0, rest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    fine |= __shfl_sync(kAllLanes, code, i) << (8 * (i % 4) + 4 * (i / 4));
    rest |= __shfl_sync(kAllLanes, code, kRest + i) << (8 * (i % 4) + 4 * (i / 4));
  }
#pragma unroll
  for (int i = 0; i < kCoarseDirections; ++i) {
    const uint32_t x = __shfl_sync(kAllLanes, code, kFineDirections + i);
    high |= (x >> 2) << (8 * (i % 4) + 2 * (i / 4));
    low |= (x & 3) << (8 * (i % 4) + 2 * (i / 4));
  }
  if (c != 0) return;
  const int64_t at = place * kCodeWords * kBlockPositions + in_block;
  p.first[at] = fine;
  p.first[at + kBlockPositions] = high;
  p.second[at] = low;
  p.second[at + kBlockPositions] = rest;
}

__global__ void __launch_bounds__(32 * kWarps) AppendKvKernel(const Params p) {
  GridWait();
  GridTrigger();
  const int64_t t = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (head >= p.q_heads + p.kv_heads) return;
  const bf16* row = p.qkv + t * (p.q_heads + 2 * p.kv_heads) * p.dim;
  const float* cos_sin = p.cos_sin + t * p.dim;
  const bf16* x = row + int64_t{head} * p.dim;
  if (head < p.q_heads) {
    NormAndTurn(x, p.q_norm, p.eps, p.dim, cos_sin, p.q_out + (t * p.q_heads + head) * p.dim);
    return;
  }
  if (p.lanes[t] < 0) return;  // padding
  const int g = head - p.q_heads, in_block = p.positions[t] % kBlockPositions;
  const int64_t slot = p.slot_table[p.lanes[t] * p.table_width + p.positions[t] / kBlockPositions];
  const int64_t place = slot * p.kv_heads + g;
  bf16* key = p.kv + (place * kBlockPositions + in_block) * 2 * p.dim;
  NormAndTurn(x, p.k_norm, p.eps, p.dim, cos_sin, key);
  for (int i = threadIdx.x % 32; i < p.dim; i += 32) {
    key[p.dim + i] = x[int64_t{p.kv_heads} * p.dim + i];
  }
  __syncwarp();
  if (p.encode != nullptr) AppendCode(p, key, g, place, in_block);
}

}  // namespace

void CudaOps::AppendKv(const AppendKvArgs& a) {
  if (a.qkv.empty()) return;
  const bool coded = !a.code.encode.empty();
  const Params p{.qkv = a.qkv.data,
                 .q_norm = a.q_norm.data,
                 .k_norm = a.k_norm.data,
                 .cos_sin = a.cos_sin.data,
                 .lanes = a.lanes.data,
                 .positions = a.positions.data,
                 .slot_table = a.kv.slot_table.data,
                 .encode = coded ? a.code.encode.data : nullptr,
                 .offset = coded ? a.code.offset.data : nullptr,
                 .q_out = a.q_out.data,
                 .kv = a.kv.rows.data,
                 .first = coded ? a.codes.first.data : nullptr,
                 .second = coded ? a.codes.second.data : nullptr,
                 .table_width = a.kv.slot_table.dim(1),
                 .q_heads = static_cast<int>(a.q_out.dim(1)),
                 .kv_heads = static_cast<int>(a.kv.rows.dim(1)),
                 .dim = static_cast<int>(a.q_norm.dim(0)),
                 .eps = a.eps};
  assert(p.dim <= 64 * kHeld);
  Launch(*state_,
         AppendKvKernel,
         dim3(static_cast<unsigned>(a.qkv.dim(0)),
              static_cast<unsigned>((p.q_heads + p.kv_heads + kWarps - 1) / kWarps)),
         32 * kWarps,
         0,
         p);
}

}  // namespace asynctls
