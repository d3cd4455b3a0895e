// SPDX-License-Identifier: Apache-2.0
// QK-norm, rotation, the append of K | V, the key's code and the turned queries. A block takes one
// KV head with its query heads, of one token or of several; a warp takes one head of a token. The
// tables come into shared memory while the op before is still ending.
#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

constexpr int kMostWarps = 8;

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
  const float* turn;  // null: no queries are turned
  int8_t* code8;
  float* turned_scale;
  int64_t turn_begin, turn_count;
  float scale;
  bf16* q_out;
  bf16* kv;
  uint32_t* first;
  uint32_t* second;
  int64_t table_width;  // M
  int tokens, tokens_per_block;
  int q_heads, kv_heads, dim;
  float eps;
};

// A lane's part of a norm's weights.
template <int kHeld>
struct Weights {
  bf16 low[kHeld], high[kHeld];

  __device__ Weights(const bf16* weight, int dim) {
    const int lane = threadIdx.x % 32, half = dim / 2;
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int i = lane + 32 * k;
      low[k] = i < half ? weight[i] : bf16{};
      high[k] = i < half ? weight[i + half] : bf16{};
    }
  }
};

// out = rotate(norm(x)); also to `kept` (shared memory, fp32) unless null.
template <int kHeld>
__device__ void NormAndTurn(const bf16* x,
                            const Weights<kHeld>& weight,
                            float eps,
                            int dim,
                            const float* cos_sin,
                            bf16* out,
                            float* kept) {
  const int lane = threadIdx.x % 32, half = dim / 2;
  float low[kHeld], high[kHeld], cosine[kHeld], sine[kHeld], squares = 0;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = lane + 32 * k;
    const bool there = i < half;
    low[k] = there ? Widen(x[i]) : 0;
    high[k] = there ? Widen(x[i + half]) : 0;
    cosine[k] = there ? cos_sin[i] : 0;
    sine[k] = there ? cos_sin[i + half] : 0;
  }
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    squares = fmaf(low[k], low[k], fmaf(high[k], high[k], squares));
  }
  const float inverse = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(dim) + eps);
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = lane + 32 * k;
    if (i >= half) continue;
    const float a = Widen(Narrow(Widen(Narrow(low[k] * inverse)) * Widen(weight.low[k])));
    const float b = Widen(Narrow(Widen(Narrow(high[k] * inverse)) * Widen(weight.high[k])));
    const bf16 turned_low = Narrow(a * cosine[k] - b * sine[k]);
    const bf16 turned_high = Narrow(b * cosine[k] + a * sine[k]);
    out[i] = turned_low;
    out[i + half] = turned_high;
    if (kept == nullptr) continue;
    kept[i] = Widen(turned_low);
    kept[i + half] = Widen(turned_high);
  }
}

// ExactProduct of x [D] and column c of `table` [D, r], both in shared memory; lane c.
__device__ float ProductOf(const float* x, const float* table, int dim) {
  const float* column = table + threadIdx.x % 32;
  if (dim % 4 != 0) {
    return gpu::ExactProduct(
        dim, [&](int d) { return x[d]; }, [&](int d) { return column[d * kCodeDirections]; });
  }
  float a[4] = {0, 0, 0, 0};
#pragma unroll 8
  for (int d = 0; d < dim; d += 4) {
    const float4 y = *reinterpret_cast<const float4*>(x + d);
    a[0] = fmaf(y.x, column[d * kCodeDirections], a[0]);
    a[1] = fmaf(y.y, column[(d + 1) * kCodeDirections], a[1]);
    a[2] = fmaf(y.z, column[(d + 2) * kCodeDirections], a[2]);
    a[3] = fmaf(y.w, column[(d + 3) * kCodeDirections], a[3]);
  }
  return (a[0] + a[1]) + (a[2] + a[3]);
}

// The turned query of a head [D] in shared memory, lane c working out direction c.
__device__ void TurnQuery(
    const float* q, const float* table, int dim, float scale, int8_t* code8, float* turned_scale) {
  const int c = threadIdx.x % 32;
  const float product = ProductOf(q, table, dim);
  const float magnitude = fabsf(product);
  const bool finite = __all_sync(kAllLanes, magnitude <= kTurnedLargest);
  const float m = WarpMax(finite ? magnitude : 0.0f);
  int code = 0;
  float head_scale = finite ? 0.0f : __uint_as_float(0x7fc00000u);
  if (finite && m >= kTurnedSmallest) {
    code = __float2int_rn(product * (127.0f / m));
    head_scale = m * (scale / 254.0f);
  }
  code8[c] = static_cast<int8_t>(code);
  if (c == 0) *turned_scale = head_scale;
}

// The code of a key, lane c working out direction c. `key` [D], `table` [D, r]: shared memory;
// `offset`: of direction c.
__device__ void AppendCode(const Params& p,
                           const float* key,
                           const float* table,
                           float offset,
                           int64_t place,
                           int in_block) {
  const int c = threadIdx.x % 32;
  const float product = ProductOf(key, table, p.dim);
  const uint32_t code = gpu::CodeOf(product - offset);
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

// Where a token's key goes: nowhere for padding (slot -1).
struct Place {
  int64_t slot;
  int in_block;

  __device__ Place(const Params& p, int64_t t) : slot(-1), in_block(0) {
    if (t >= p.tokens || p.lanes[t] < 0) return;
    in_block = p.positions[t] % kBlockPositions;
    slot = p.slot_table[p.lanes[t] * p.table_width + p.positions[t] / kBlockPositions];
  }
};

// What a warp works in, in shared memory.
struct Tables {
  const float* encode;  // [D, r]
  const float* turn;    // [D, r]
  float* kept;          // [D]
  float offset;         // of the lane's direction of `encode`
};

// Query head `head` of the group.
template <int kHeld>
__device__ void AppendQuery(const Params& p,
                            int64_t t,
                            int g,
                            int head,
                            const Weights<kHeld>& weights,
                            const Tables& tables) {
  const int64_t h = int64_t{g} * (p.q_heads / p.kv_heads) + head;
  const int64_t s = t - p.turn_begin;
  const bool turned = p.turn != nullptr && s >= 0 && s < p.turn_count;
  NormAndTurn(p.qkv + (t * (p.q_heads + 2 * p.kv_heads) + h) * p.dim,
              weights,
              p.eps,
              p.dim,
              p.cos_sin + t * p.dim,
              p.q_out + (t * p.q_heads + h) * p.dim,
              turned ? tables.kept : nullptr);
  if (!turned || p.lanes[t] < 0) return;
  __syncwarp();
  const int64_t to = s * p.q_heads + h;
  TurnQuery(tables.kept,
            tables.turn,
            p.dim,
            p.scale,
            p.code8 + to * kCodeDirections,
            p.turned_scale + to);
}

template <int kHeld>
__device__ void AppendKey(const Params& p,
                          int64_t t,
                          int g,
                          const Place& at,
                          const Weights<kHeld>& weights,
                          const Tables& tables) {
  if (at.slot < 0) return;
  const int64_t place = at.slot * p.kv_heads + g;
  bf16* key = p.kv + (place * kBlockPositions + at.in_block) * 2 * p.dim;
  const bf16* x = p.qkv + (t * (p.q_heads + 2 * p.kv_heads) + p.q_heads + g) * p.dim;
  const bf16* value = x + int64_t{p.kv_heads} * p.dim;
  bf16 held[2 * kHeld];  // on their way together with x
#pragma unroll
  for (int k = 0; k < 2 * kHeld; ++k) {
    const int i = static_cast<int>(threadIdx.x) % 32 + 32 * k;
    held[k] = i < p.dim ? value[i] : bf16{};
  }
  NormAndTurn(x, weights, p.eps, p.dim, p.cos_sin + t * p.dim, key, tables.kept);
#pragma unroll
  for (int k = 0; k < 2 * kHeld; ++k) {
    const int i = static_cast<int>(threadIdx.x) % 32 + 32 * k;
    if (i < p.dim) key[p.dim + i] = held[k];
  }
  __syncwarp();
  if (p.encode == nullptr) return;
  AppendCode(p, tables.kept, tables.encode, tables.offset, place, at.in_block);
}

// Starts the copy of a table [D, r] of KV head g; null if there is none. Moves `shared` past it.
__device__ const float* FetchTable(const Params& p, const float* from, int g, float*& shared) {
  if (from == nullptr) return nullptr;
  float* table = shared;
  const int values = p.dim * kCodeDirections;
  for (int i = 4 * static_cast<int>(threadIdx.x); i < values;
       i += 4 * static_cast<int>(blockDim.x)) {
    CopyAsync16(SharedAddress(table + i), from + int64_t{g} * values + i);
  }
  shared += values;
  return table;
}

// kHeld: pairs (i, i + D/2) that a lane holds.
template <int kHeld>
__global__ void __launch_bounds__(32 * kMostWarps) AppendKvKernel(const Params p) {
  GridTrigger();
  auto* shared = DynamicShared<float>();  // tables [D, r] | a head [D] per warp
  const int warp = static_cast<int>(threadIdx.x) / 32, g = static_cast<int>(blockIdx.y);
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int64_t first = int64_t{blockIdx.x} * p.tokens_per_block;
  const int heads = p.q_heads / p.kv_heads + 1;  // the key first
  float* free = shared;
  Tables tables;
  tables.encode = FetchTable(p, p.encode, g, free);
  tables.turn = FetchTable(p, p.turn, g, free);
  tables.kept = free + warp * p.dim;
  CopyCommit();
  // No kernel of the step writes what these read.
  tables.offset = p.encode == nullptr
                      ? 0.0f
                      : p.offset[g * kCodeDirections + static_cast<int>(threadIdx.x) % 32];
  Place place(p, first + warp / heads);
  Weights<kHeld> weights(warp % heads == 0 ? p.k_norm : p.q_norm, p.dim);
  GridWait();
  CopyWait<0>();
  __syncthreads();
  const int items = static_cast<int>(min(int64_t{p.tokens_per_block}, p.tokens - first)) * heads;
  for (int i = warp; i < items; i += warps) {
    const int64_t t = first + i / heads;
    const bool is_key = i % heads == 0;
    if (i != warp) {
      if (is_key) place = Place(p, t);
      weights = Weights<kHeld>(is_key ? p.k_norm : p.q_norm, p.dim);
    }
    if (is_key) {
      AppendKey(p, t, g, place, weights, tables);
    } else {
      AppendQuery(p, t, g, i % heads - 1, weights, tables);
    }
    __syncwarp();
  }
}

}  // namespace

void CudaOps::AppendKv(const AppendKvArgs& a) {
  if (a.qkv.empty()) return;
  const bool coded = !a.code.encode.empty(), turned = !a.turned.code8.empty();
  const Params p{.qkv = a.qkv.data,
                 .q_norm = a.q_norm.data,
                 .k_norm = a.k_norm.data,
                 .cos_sin = a.cos_sin.data,
                 .lanes = a.lanes.data,
                 .positions = a.positions.data,
                 .slot_table = a.kv.slot_table.data,
                 .encode = coded ? a.code.encode.data : nullptr,
                 .offset = coded ? a.code.offset.data : nullptr,
                 .turn = turned ? a.code.turn.data : nullptr,
                 .code8 = a.turned.code8.data,
                 .turned_scale = a.turned.scale.data,
                 .turn_begin = a.turn_begin,
                 .turn_count = turned ? a.turned.scale.dim(0) : 0,
                 .scale = a.scale,
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
  constexpr int kFewPairs = 2, kManyPairs = 8;
  assert(p.dim <= 64 * kManyPairs);
  const auto kernel =
      p.dim <= 64 * kFewPairs ? AppendKvKernel<kFewPairs> : AppendKvKernel<kManyPairs>;
  // A warp for each head of a token, as far as they go.
  const int warps = std::min<int>(kMostWarps, p.tokens_per_block * (p.q_heads / p.kv_heads + 1));
  const size_t shared = sizeof(float) * static_cast<size_t>(p.dim) *
                        (warps + kCodeDirections * (size_t{coded} + size_t{turned}));
  Launch(*state_,
         kernel,
         dim3(static_cast<unsigned>((p.tokens + p.tokens_per_block - 1) / p.tokens_per_block),
              static_cast<unsigned>(p.kv_heads)),
         32 * static_cast<unsigned>(warps),
         shared,
         p);
}

}  // namespace asynctls
