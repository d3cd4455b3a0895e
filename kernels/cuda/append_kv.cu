// SPDX-License-Identifier: Apache-2.0
// QK-norm, rotation, the append of K | V, and the key's code. A block takes one KV head with its
// query heads, of one token or of several; a warp takes one head of a token. The table that codes
// the keys comes into shared memory while the op before is still ending.
#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
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
  int tokens, tokens_per_block;
  int q_heads, kv_heads, dim;
  float eps;
};

// out = rotate(norm(x)); also to `kept` (shared memory, fp32) unless null.
__device__ void NormAndTurn(const bf16* x,
                            const bf16* weight,
                            float eps,
                            int dim,
                            const float* cos_sin,
                            bf16* out,
                            float* kept) {
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
    const bf16 turned_low = Narrow(a * cosine - b * sine);
    const bf16 turned_high = Narrow(b * cosine + a * sine);
    out[i] = turned_low;
    out[i + half] = turned_high;
    if (kept == nullptr) continue;
    kept[i] = Widen(turned_low);
    kept[i + half] = Widen(turned_high);
  }
}

// The code of a key, lane c working out direction c. `key` [D], `table` [D, r]: shared memory.
__device__ void AppendCode(
    const Params& p, const float* key, const float* table, int g, int64_t place, int in_block) {
  const int c = threadIdx.x % 32;
  const float product = gpu::ExactProduct(
      p.dim, [&](int d) { return key[d]; }, [&](int d) { return table[d * kCodeDirections + c]; });
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

// Head `head` of the group (the last one is the key) of token t.
__device__ void AppendHead(
    const Params& p, int64_t t, int g, int head, float* kept, const float* table) {
  const int group = p.q_heads / p.kv_heads, lane = threadIdx.x % 32;
  const bf16* row = p.qkv + t * (p.q_heads + 2 * p.kv_heads) * p.dim;
  const float* cos_sin = p.cos_sin + t * p.dim;
  if (head < group) {
    const int64_t h = int64_t{g} * group + head;
    bf16* out = p.q_out + (t * p.q_heads + h) * p.dim;
    return NormAndTurn(row + h * p.dim, p.q_norm, p.eps, p.dim, cos_sin, out, nullptr);
  }
  if (p.lanes[t] < 0) return;  // padding
  const int in_block = p.positions[t] % kBlockPositions;
  const int64_t slot = p.slot_table[p.lanes[t] * p.table_width + p.positions[t] / kBlockPositions];
  const int64_t place = slot * p.kv_heads + g;
  bf16* key = p.kv + (place * kBlockPositions + in_block) * 2 * p.dim;
  const bf16* x = row + int64_t{p.q_heads + g} * p.dim;
  const bf16* value = x + int64_t{p.kv_heads} * p.dim;
  for (int i = lane; i < p.dim; i += 32) key[p.dim + i] = value[i];
  NormAndTurn(x, p.k_norm, p.eps, p.dim, cos_sin, key, kept);
  __syncwarp();
  if (p.encode != nullptr) AppendCode(p, kept, table, g, place, in_block);
  __syncwarp();
}

__global__ void __launch_bounds__(kThreads) AppendKvKernel(const Params p) {
  extern __shared__ __align__(16) float shared[];  // the table [D, r] | a key [D] per warp
  GridTrigger();
  const int warp = static_cast<int>(threadIdx.x) / 32, g = static_cast<int>(blockIdx.y);
  float* kept = shared + (p.encode != nullptr ? p.dim * kCodeDirections : 0) + warp * p.dim;
  if (p.encode != nullptr) {
    const float* table = p.encode + int64_t{g} * p.dim * kCodeDirections;
    for (int i = static_cast<int>(threadIdx.x); i < p.dim * kCodeDirections / 4; i += kThreads) {
      CopyAsync16(SharedAddress(shared + 4 * i), table + 4 * i);
    }
  }
  CopyCommit();
  GridWait();
  CopyWait<0>();
  __syncthreads();
  const int first = static_cast<int>(blockIdx.x) * p.tokens_per_block;
  const int heads = p.q_heads / p.kv_heads + 1;
  const int items = min(p.tokens_per_block, p.tokens - first) * heads;
  for (int i = warp; i < items; i += kWarps) {
    AppendHead(p, first + i / heads, g, heads - 1 - i % heads, kept, shared);
  }
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
                 .tokens = static_cast<int>(a.qkv.dim(0)),
                 .tokens_per_block = a.qkv.dim(0) > 256 ? 16 : 1,
                 .q_heads = static_cast<int>(a.q_out.dim(1)),
                 .kv_heads = static_cast<int>(a.kv.rows.dim(1)),
                 .dim = static_cast<int>(a.q_norm.dim(0)),
                 .eps = a.eps};
  assert(p.dim <= 64 * kHeld);
  const size_t shared =
      sizeof(float) * static_cast<size_t>(p.dim) * (kWarps + (coded ? kCodeDirections : 0));
  state_->AllowShared(reinterpret_cast<const void*>(AppendKvKernel));
  Launch(*state_,
         AppendKvKernel,
         dim3(static_cast<unsigned>((p.tokens + p.tokens_per_block - 1) / p.tokens_per_block),
              static_cast<unsigned>(p.kv_heads)),
         kThreads,
         shared,
         p);
}

}  // namespace asynctls
