// SPDX-License-Identifier: Apache-2.0
// Level 2: scores the whole code of every token in the selected blocks, softmax per query head in
// fixed point, keeps the best tokens; one thread block a (row, KV head).
//
// A warp takes a block of 64 positions: both parts of the code, put together, are the rows of an
// integer matrix product whose columns are the query heads. The products stay in registers while
// the heads' maxima and sums go around, as long as a warp has at most kHeldBlocks blocks; what is
// more is computed again.
#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"
#include "kernels/cuda/top_k.cuh"

namespace asynctls {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps;
constexpr int kColumns = 8;     // query heads of a product
constexpr int kMaxHeads = 32;   // of one KV head
constexpr int kHeldKeys = 40 * 1024;  // candidates whose keys fit shared memory

struct Params {
  const int32_t* slots;      // [L, M]
  const DecodeRow* rows;     // [S]
  const uint32_t* first;     // [N, G, 2, P]
  const uint32_t* second;
  const int8_t* code8;       // [S, Q, r]
  const float* scale;        // [S, Q]
  const int32_t* blocks;     // [S, G, M of out]
  const int32_t* block_count;
  int32_t* tokens;           // [S, G, K]
  int32_t* token_count;
  int32_t* touched;
  uint32_t* keys;            // [S, G, M P] in global memory
  int64_t table_width;       // M
  int64_t list_width;        // M of out
  int64_t max_tokens;        // K
  int groups, heads;
  int shared_keys;           // candidates that have room in shared memory
};

struct Shared {
  TopK<kThreads>::Scratch top;
  int largest[kMaxHeads];               // of the products
  unsigned long long sum[kMaxHeads];    // of the weights
  float scale[kMaxHeads];
  int zero[kMaxHeads];
  alignas(16) int8_t code8[kMaxHeads * kCodeDirections];
  int touched;
};

// The codes of one block that a lane needs: positions 4 quad .. + 3 and 32 + 4 quad .. + 3.
struct BlockCodes {
  uint32_t coarse[2][4];  // bytes of four coarse directions
  uint32_t whole[2][4];   // bytes of four fine or last directions

  __device__ BlockCodes(const uint32_t* first, const uint32_t* second) {
    const int lane = threadIdx.x % 32, t = lane % 4, quad = lane / 4;
    const uint32_t* nibbles = t < 2 ? first : second + kBlockPositions;
    const int turn = (2 * t - 2) & 31;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = 32 * j + 4 * quad;
      const uint4 high = *reinterpret_cast<const uint4*>(first + kBlockPositions + at);
      const uint4 low = *reinterpret_cast<const uint4*>(second + at);
      const uint4 nibble = *reinterpret_cast<const uint4*>(nibbles + at);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t h = reinterpret_cast<const uint32_t*>(&high)[i];
        const uint32_t l = reinterpret_cast<const uint32_t*>(&low)[i];
        coarse[j][i] =
            (__funnelshift_r(h, h, turn) & 0x0c0c0c0cu) | (l >> (2 * t) & 0x03030303u);
        whole[j][i] = reinterpret_cast<const uint32_t*>(&nibble)[i] >> (4 * (t & 1)) & 0x0f0f0f0fu;
      }
    }
  }

  // Products of the heads of one column tile: c[i][0..1] are heads 2 t, 2 t + 1 of position
  // 4 quad + i, c[i][2..3] the same of position 32 + 4 quad + i.
  __device__ void Multiply(const int8_t* code8, int heads, int (&c)[4][4]) const {
    const int lane = threadIdx.x % 32, t = lane % 4, head = lane / 4;
    uint32_t b0 = 0, b1 = 0;
    if (head < heads) {
      const auto* q = reinterpret_cast<const uint32_t*>(code8 + head * kCodeDirections);
      b0 = q[kFineDirections / 4 + t];
      b1 = q[t < 2 ? t : (kFineDirections + kCoarseDirections) / 4 + t - 2];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t a[4] = {coarse[0][i], coarse[1][i], whole[0][i], whole[1][i]};
      MultiplyBytes(c[i], a, b0, b1);
    }
  }
};

__global__ void __launch_bounds__(kThreads) SelectTokensKernel(const Params p) {
  extern __shared__ __align__(128) uint32_t shared_keys[];
  __shared__ Shared sh;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int t = lane % 4, quad = lane / 4;
  const int g = static_cast<int>(blockIdx.x);
  const int64_t s = blockIdx.y, pair = s * p.groups + g;
  GridWait();
  GridTrigger();
  const DecodeRow row = p.rows[s];
  const int blocks = row.length > 0 ? p.block_count[pair] : 0;
  if (blocks == 0) {
    if (threadIdx.x == 0) p.token_count[pair] = p.touched[pair] = 0;
    return;
  }
  const int32_t* list = p.blocks + pair * p.list_width;
  const int32_t* slots = p.slots + row.lane * p.table_width;
  const int last_positions =
      min(kBlockPositions, row.length - list[blocks - 1] * kBlockPositions);
  const int n = (blocks - 1) * kBlockPositions + last_positions;  // candidates
  uint32_t* keys =
      n <= p.shared_keys ? shared_keys : p.keys + pair * p.table_width * kBlockPositions;

  const int64_t head0 = pair * p.heads;
  for (int i = static_cast<int>(threadIdx.x); i < p.heads * kCodeDirections; i += kThreads) {
    sh.code8[i] = p.code8[head0 * kCodeDirections + i];
  }
  for (int h = warp; h < p.heads; h += kWarps) {
    const int zero =
        -15 * __reduce_add_sync(kAllLanes, int{p.code8[(head0 + h) * kCodeDirections + lane]});
    if (lane == 0) {
      sh.zero[h] = zero;
      sh.scale[h] = p.scale[head0 + h];
      sh.largest[h] = INT_MIN;
      sh.sum[h] = 0;
    }
  }
  if (threadIdx.x == 0) sh.touched = 0;
  __syncthreads();

  auto codes_of = [&](int b) {
    const int64_t place =
        (int64_t{slots[list[b]]} * p.groups + g) * kCodeWords * kBlockPositions;
    return BlockCodes(p.first + place, p.second + place);
  };
  auto valid = [&](int b, int in_block) { return b < blocks - 1 || in_block < last_positions; };

  // For each column tile: products, their maxima, weights, their sums, then the heads' shares are
  // added to the scores, head by head (the order is the definition's). Scores of the first tile
  // start at 0.
  constexpr int kHeld = 4;  // blocks of a warp whose weights stay in registers
  for (int column = 0; column < p.heads; column += kColumns) {
    const int heads = min(kColumns, p.heads - column);
    const int8_t* code8 = sh.code8 + column * kCodeDirections;
    uint32_t held[kHeld][4][4];
    // Pass 1: the largest product of each head.
    int top[2] = {INT_MIN, INT_MIN};
    auto products = [&](int b, int (&c)[4][4]) {
      codes_of(b).Multiply(code8, heads, c);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!valid(b, 4 * quad + i)) c[i][0] = c[i][1] = INT_MIN;
        if (!valid(b, 32 + 4 * quad + i)) c[i][2] = c[i][3] = INT_MIN;
#pragma unroll
        for (int j = 0; j < 2; ++j) top[j] = max(top[j], max(c[i][j], c[i][j + 2]));
      }
    };
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int b = warp + kWarps * k;
      if (b >= blocks) break;
      int c[4][4];
      products(b, c);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) held[k][i][j] = static_cast<uint32_t>(c[i][j]);
      }
    }
    for (int b = warp + kWarps * kHeld; b < blocks; b += kWarps) {
      int c[4][4];
      products(b, c);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      for (int i = 4; i < 32; i <<= 1) top[j] = max(top[j], __shfl_xor_sync(kAllLanes, top[j], i));
      if (quad == 0 && 2 * t + j < heads) atomicMax(&sh.largest[column + 2 * t + j], top[j]);
    }
    __syncthreads();
    float scale[2], largest[2];
    int zero[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int h = column + 2 * t + j;
      const bool there = 2 * t + j < heads && !isnan(sh.scale[h]);
      scale[j] = there ? sh.scale[h] : 0;
      zero[j] = there ? sh.zero[h] : 0;
      largest[j] = there ? static_cast<float>(2 * sh.largest[h] + zero[j]) * scale[j] : 0;
      if (!there) scale[j] = __uint_as_float(0x7fc00000u);
    }
    // Pass 2: products to weights, and their sums.
    unsigned long long sum[2] = {0, 0};
    auto weigh = [&](int product, int j) -> uint32_t {
      if (product == INT_MIN || isnan(scale[j])) return 0;
      const float logit = static_cast<float>(2 * product + zero[j]) * scale[j];
      return gpu::FixedExp2((logit - largest[j]) * kLog2E);
    };
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (warp + kWarps * k >= blocks) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          held[k][i][j] = weigh(static_cast<int>(held[k][i][j]), j & 1);
          sum[j & 1] += held[k][i][j];
        }
      }
    }
    for (int b = warp + kWarps * kHeld; b < blocks; b += kWarps) {
      int c[4][4];
      products(b, c);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j & 1] += weigh(c[i][j], j & 1);
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      for (int i = 4; i < 32; i <<= 1) sum[j] += __shfl_xor_sync(kAllLanes, sum[j], i);
      if (quad == 0 && 2 * t + j < heads) atomicAdd(&sh.sum[column + 2 * t + j], sum[j]);
    }
    __syncthreads();
    float inverse[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const unsigned long long z = 2 * t + j < heads ? sh.sum[column + 2 * t + j] : 0;
      inverse[j] = z == 0 ? 0 : 1.0f / __ull2float_rn(z);
    }
    // Pass 3: the chain over the heads, from lane t = 0 to 3 of a quad; lane 3 has the score.
    auto add = [&](int b, const uint32_t (&w)[4][4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int in_block = 32 * half + 4 * quad + i;
          const int at = b * kBlockPositions + in_block;
          const bool there = valid(b, in_block);
          float score = column > 0 && there && t == 0 ? __uint_as_float(keys[at]) : 0.0f;
          for (int turn = 0; turn < 4; ++turn) {
            if (t == turn) {
              score = fmaf(__uint2float_rn(w[i][2 * half]), inverse[0], score);
              score = fmaf(__uint2float_rn(w[i][2 * half + 1]), inverse[1], score);
            }
            const float from = __shfl_up_sync(kAllLanes, score, 1, 4);
            if (t == turn + 1) score = from;
          }
          if (t == 3 && there) keys[at] = __float_as_uint(score);
        }
      }
    };
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int b = warp + kWarps * k;
      if (b >= blocks) break;
      add(b, held[k]);
    }
    for (int b = warp + kWarps * kHeld; b < blocks; b += kWarps) {
      int c[4][4];
      products(b, c);
      uint32_t w[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) w[i][j] = weigh(c[i][j], j & 1);
      }
      add(b, w);
    }
    __syncthreads();
  }

  // Scores to ranks.
  auto position_of = [&](int i) {
    return list[i / kBlockPositions] * kBlockPositions + i % kBlockPositions;
  };
  unsigned long long mass = 0, forced_mass = 0;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    const float score = __uint_as_float(keys[i]);
    const bool forced = gpu::TokenIsForced(position_of(i), row.length);
    mass += gpu::FixedScore(score);
    if (forced) forced_mass += gpu::FixedScore(score);
    keys[i] = forced ? kForcedKey : gpu::OrderedKey(score);
  }
  __syncthreads();
  using Top = TopK<kThreads>;
  const int keep = min(max(row.max_tokens, 0), n);
  typename Top::Cut cut{0, n};
  if (keep == 0) cut = {kForcedKey, 0};
  if (keep > 0 && keep < n) cut = Top::ByCount(sh.top, keys, n, keep);
  if (row.top_p < 1.0f && keep > 0) {
    unsigned long long total, forced_total;
    Top::Scan(sh.top, mass, &total);
    Top::Scan(sh.top, forced_mass, &forced_total);
    cut = Top::ByMass(sh.top, keys, n, cut, row.top_p, total, forced_total);
  }
  int32_t* out = p.tokens + pair * p.max_tokens;
  const int count = Top::Emit(sh.top, keys, n, cut, [&](int i, int at) { out[at] = position_of(i); });
  __threadfence_block();
  __syncthreads();
  int touched = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    touched += i == 0 || out[i] / kBlockPositions != out[i - 1] / kBlockPositions;
  }
  touched = __reduce_add_sync(kAllLanes, touched);
  if (lane == 0 && touched > 0) atomicAdd(&sh.touched, touched);
  __syncthreads();
  if (threadIdx.x == 0) {
    p.token_count[pair] = count;
    p.touched[pair] = sh.touched;
  }
}

}  // namespace

void CudaOps::SelectTokens(const SelectTokensArgs& a) {
  if (a.rows.empty()) return;
  const auto groups = static_cast<int>(a.out.block_count.dim(1));
  const int64_t width = a.slot_table.dim(1), list = a.out.blocks.dim(2);
  const int64_t most = list * kBlockPositions;
  Params p{.slots = a.slot_table.data,
           .rows = a.rows.data,
           .first = a.codes.first.data,
           .second = a.codes.second.data,
           .code8 = a.turned.code8.data,
           .scale = a.turned.scale.data,
           .blocks = a.out.blocks.data,
           .block_count = a.out.block_count.data,
           .tokens = a.out.tokens.data,
           .token_count = a.out.token_count.data,
           .touched = a.out.touched.data,
           .keys = state_->token_keys.data,
           .table_width = width,
           .list_width = list,
           .max_tokens = a.out.tokens.dim(2),
           .groups = groups,
           .heads = static_cast<int>(a.turned.code8.dim(1)) / groups,
           .shared_keys = static_cast<int>(std::min<int64_t>(most, kHeldKeys))};
  assert(p.heads <= kMaxHeads);
  const size_t shared = sizeof(uint32_t) * static_cast<size_t>(p.shared_keys);
  state_->AllowShared(reinterpret_cast<const void*>(SelectTokensKernel));
  Launch(*state_,
         SelectTokensKernel,
         dim3(static_cast<unsigned>(groups), static_cast<unsigned>(a.rows.dim(0))),
         kThreads,
         shared,
         p);
}

}  // namespace asynctls
