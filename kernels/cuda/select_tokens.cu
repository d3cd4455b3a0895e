// SPDX-License-Identifier: Apache-2.0
// Level 2: scores the whole code of every token in the selected blocks, softmax per query head in
// fixed point, keeps the best tokens; one cluster of thread blocks a (row, KV head).
//
// A warp takes a block of 64 positions: both parts of the code, put together, are the rows of an
// integer matrix product whose columns are the query heads. The first block of a warp stays in
// registers while the heads' maxima and sums go around the cluster, others are computed again. The
// scores meet in the first thread block, which keeps the best.
#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"
#include "kernels/cuda/top_k.cuh"

namespace asynctls {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps;
constexpr int kClusterRanks = 4;
constexpr int kColumns = 8;           // query heads of a product
constexpr int kMaxHeads = 32;         // of one KV head
constexpr int kSharedKeys = 8192;     // candidates whose keys fit shared memory
constexpr int kSharedSlots = 2048;    // blocks of a lane whose slots are read ahead
constexpr int kHeldKeys = 8;          // of a thread: up to 4,096 candidates are ranked in registers

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
};

struct Shared {
  TopK<kThreads>::Scratch top;
  int largest[kMaxHeads];             // of the products of this thread block
  unsigned long long sum[kMaxHeads];  // of its weights
  float scale[kMaxHeads];             // NaN: left out
  int zero[kMaxHeads];                // what the product of all-zero codes would be
  alignas(16) int8_t code8[kMaxHeads * kCodeDirections];
  int touched;
  uint32_t keys[kSharedKeys];
  int32_t slots[kSharedSlots];
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

// One head tile of a cluster's work. Every lane has the products of two heads: of 2 t and 2 t + 1
// for both runs of positions, or, when four heads are all there are (kFew), of 2 (t % 2) and the next
// for one run: the lower for t < 2.
template <int kRanks, bool kFew>
struct Tile {
  static constexpr int kValues = kFew ? 2 : 4;  // per i: [run][head of two]
  using Values = uint32_t[4][kValues];

  Shared& sh;
  int column, heads;  // first head of the tile, how many
  int blocks, last_positions;
  int t, quad, own;   // own: the lane's first head within the tile

  __device__ bool Exists(int b, int in_block) const {
    return b < blocks - 1 || in_block < last_positions;
  }
  __device__ int InBlock(int i, int run) const { return 32 * run + 4 * quad + i; }
  __device__ int Run(int k) const { return kFew ? t / 2 : k / 2; }

  // The products of a block, INT_MIN for positions that do not exist.
  __device__ void Products(int b, const BlockCodes& codes, Values& v) const {
    int c[4][4];
    codes.Multiply(sh.code8 + column * kCodeDirections, heads, c);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kFew) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int other = __shfl_sync(kAllLanes, c[i][2 + j], threadIdx.x % 32 & ~2);
          v[i][j] = static_cast<uint32_t>(t < 2 ? c[i][j] : other);
        }
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) v[i][k] = static_cast<uint32_t>(c[i][k]);
      }
#pragma unroll
      for (int k = 0; k < kValues; ++k) {
        if (!Exists(b, InBlock(i, Run(k)))) v[i][k] = static_cast<uint32_t>(INT_MIN);
      }
    }
  }

  __device__ void Largest(const Values& v, int (&top)[2]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int k = 0; k < kValues; ++k) top[k % 2] = max(top[k % 2], static_cast<int>(v[i][k]));
    }
  }

  // What a head's weights are made with.
  struct Head {
    float scale, largest;
    int zero;
    bool there;
  };
  __device__ static uint32_t Weight(const Head& head, uint32_t product) {
    if (!head.there || product == static_cast<uint32_t>(INT_MIN)) return 0;
    const float logit = static_cast<float>(2 * static_cast<int>(product) + head.zero) * head.scale;
    return gpu::FixedExp2((logit - head.largest) * kLog2E);
  }

  // Adds the heads' shares to the scores of a block, head by head; at(i, run): where they are.
  template <typename Load, typename Store>
  __device__ void Add(
      int b, const Values& weight, const float (&inverse)[2], Load load, Store store) const {
    constexpr int kTurns = kFew ? 2 : 4;  // lanes that a score goes through
    const int turn = t % kTurns;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int r = 0; r < kValues / 2; ++r) {
        const int in_block = InBlock(i, Run(2 * r));
        const bool there = Exists(b, in_block);
        const float w0 = __uint2float_rn(weight[i][2 * r]);
        const float w1 = __uint2float_rn(weight[i][2 * r + 1]);
        float score = column > 0 && there && turn == 0 ? load(in_block) : 0.0f;
#pragma unroll
        for (int step = 0; step < kTurns; ++step) {
          if (turn == step) score = fmaf(w1, inverse[1], fmaf(w0, inverse[0], score));
          const float before = __shfl_up_sync(kAllLanes, score, 1, kTurns);
          if (turn == step + 1) score = before;
        }
        if (turn == kTurns - 1 && there) store(in_block, score);
      }
    }
  }
};

template <int kRanks, bool kFew>
__global__ void __launch_bounds__(kThreads, 2) SelectTokensKernel(const Params p) {
  extern __shared__ __align__(128) uint8_t shared[];
  Shared& sh = *reinterpret_cast<Shared*>(shared);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int rank = static_cast<int>(blockIdx.x), g = static_cast<int>(blockIdx.y);
  const int64_t s = blockIdx.z, pair = s * p.groups + g;
  using Top = TopK<kThreads>;
  Top::Clear(sh.top);
  GridWait();
  GridTrigger();
  const DecodeRow row = p.rows[s];
  const int blocks = row.length > 0 ? p.block_count[pair] : 0;
  if (blocks == 0) {  // the whole cluster
    if (rank == 0 && threadIdx.x == 0) p.token_count[pair] = p.touched[pair] = 0;
    return;
  }
  const int32_t* list = p.blocks + pair * p.list_width;
  const int32_t* slots = p.slots + row.lane * p.table_width;
  const int all_blocks = (row.length + kBlockPositions - 1) / kBlockPositions;
  for (int i = static_cast<int>(threadIdx.x); i < min(all_blocks, kSharedSlots); i += kThreads) {
    sh.slots[i] = slots[i];
  }
  const int last_positions =
      min(kBlockPositions, row.length - list[blocks - 1] * kBlockPositions);
  const int n = (blocks - 1) * kBlockPositions + last_positions;  // candidates
  const bool in_shared = n <= kSharedKeys;
  uint32_t* far_keys = p.keys + pair * p.table_width * kBlockPositions;

  const int64_t head0 = pair * p.heads;
  for (int h = warp; h < p.heads; h += kWarps) {
    const int code = p.code8[(head0 + h) * kCodeDirections + lane];
    sh.code8[h * kCodeDirections + lane] = static_cast<int8_t>(code);
    const int zero = -15 * __reduce_add_sync(kAllLanes, code);
    if (lane == 0) {
      sh.zero[h] = zero;
      sh.scale[h] = p.scale[head0 + h];
      sh.largest[h] = INT_MIN;
      sh.sum[h] = 0;
    }
  }
  if (threadIdx.x == 0) sh.touched = 0;
  __syncthreads();

  const int first_block = rank * kWarps + warp;
  constexpr int kStride = kRanks * kWarps;
  auto codes_of = [&](int b) {
    const int block = list[b];
    const int64_t slot = block < kSharedSlots ? sh.slots[block] : slots[block];
    const int64_t place = (slot * p.groups + g) * kCodeWords * kBlockPositions;
    return BlockCodes(p.first + place, p.second + place);
  };
  auto load = [&](int at) {
    return __uint_as_float(in_shared ? ClusterLoad<kRanks>(ClusterAddress<kRanks>(sh.keys + at, 0))
                                     : far_keys[at]);
  };
  auto store = [&](int at, float score) {
    if (in_shared) {
      ClusterStore<kRanks>(ClusterAddress<kRanks>(sh.keys + at, 0), __float_as_uint(score));
    } else {
      far_keys[at] = __float_as_uint(score);
    }
  };
  using T = Tile<kRanks, kFew>;
  for (int column = 0; column < p.heads; column += kColumns) {
    const int t = lane % 4, quad = lane / 4;
    const T tile{sh, column, min(kColumns, p.heads - column), blocks, last_positions, t, quad,
                 kFew ? 2 * (t % 2) : 2 * t};
    // The largest product of each head, here and then in the cluster.
    typename T::Values held;
    int top[2] = {INT_MIN, INT_MIN};
    for (int b = first_block + kStride; b < blocks; b += kStride) {
      tile.Products(b, codes_of(b), held);
      tile.Largest(held, top);
    }
    if (first_block < blocks) {
      tile.Products(first_block, codes_of(first_block), held);
      tile.Largest(held, top);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      for (int i = 4; i < 32; i <<= 1) top[j] = max(top[j], __shfl_xor_sync(kAllLanes, top[j], i));
      if (kFew) top[j] = max(top[j], __shfl_xor_sync(kAllLanes, top[j], 2));
      if (lane < 4 && (!kFew || t < 2) && tile.own + j < tile.heads) {
        atomicMax(&sh.largest[column + tile.own + j], top[j]);
      }
    }
    ClusterSync<kRanks>();
    typename T::Head head[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int h = column + tile.own + j;
      head[j].there = tile.own + j < tile.heads && !isnan(sh.scale[h]);
      if (!head[j].there) continue;
      int largest = INT_MIN;
#pragma unroll
      for (int r = 0; r < kRanks; ++r) {
        largest = max(largest,
                      static_cast<int>(
                          ClusterLoad<kRanks>(ClusterAddress<kRanks>(&sh.largest[h], r))));
      }
      head[j].scale = sh.scale[h];
      head[j].zero = sh.zero[h];
      head[j].largest = static_cast<float>(2 * largest + head[j].zero) * head[j].scale;
    }
    // The weights and their sums.
    unsigned long long sum[2] = {0, 0};
    auto weigh = [&](typename T::Values& v) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int k = 0; k < T::kValues; ++k) {
          v[i][k] = T::Weight(head[k % 2], v[i][k]);
          sum[k % 2] += v[i][k];
        }
      }
    };
    for (int b = first_block + kStride; b < blocks; b += kStride) {
      typename T::Values v;
      tile.Products(b, codes_of(b), v);
      weigh(v);
    }
    if (first_block < blocks) weigh(held);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      for (int i = 4; i < 32; i <<= 1) sum[j] += __shfl_xor_sync(kAllLanes, sum[j], i);
      if (kFew) sum[j] += __shfl_xor_sync(kAllLanes, sum[j], 2);
      if (lane < 4 && (!kFew || t < 2) && tile.own + j < tile.heads) {
        atomicAdd(&sh.sum[column + tile.own + j], sum[j]);
      }
    }
    ClusterSync<kRanks>();
    float inverse[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      unsigned long long z = 0;
      for (int r = 0; r < kRanks && head[j].there; ++r) {
        const uint32_t address = ClusterAddress<kRanks>(&sh.sum[column + tile.own + j], r);
        z += ClusterLoad<kRanks>(address) |
             static_cast<unsigned long long>(ClusterLoad<kRanks>(address + 4)) << 32;
      }
      inverse[j] = z == 0 ? 0 : 1.0f / __ull2float_rn(z);
    }
    auto add = [&](int b, const typename T::Values& v) {
      const int base = b * kBlockPositions;
      tile.Add(
          b,
          v,
          inverse,
          [&](int i) { return load(base + i); },
          [&](int i, float score) { store(base + i, score); });
    };
    if (first_block < blocks) add(first_block, held);
    for (int b = first_block + kStride; b < blocks; b += kStride) {
      typename T::Values v;
      tile.Products(b, codes_of(b), v);
      weigh(v);
      add(b, v);
    }
    if (!in_shared) __threadfence();
    ClusterSync<kRanks>();
  }
  if (rank != 0) return;

  // The first thread block keeps the best. A thread's keys lie in one block of positions or in
  // whole ones, so that blocks are counted where they are.
  unsigned long long mass = 0, forced_mass = 0;
  auto position_of = [&](int i) {
    return list[i / kBlockPositions] * kBlockPositions + i % kBlockPositions;
  };
  auto key_of = [&](int i) {
    const float score = __uint_as_float(in_shared ? sh.keys[i] : __ldcg(far_keys + i));
    const bool forced = gpu::TokenIsForced(position_of(i), row.length);
    if (row.top_p < 1.0f) {
      mass += gpu::FixedScore(score);
      if (forced) forced_mass += gpu::FixedScore(score);
    }
    return forced ? kForcedKey : gpu::OrderedKey(score);
  };
  const int keep = min(max(row.max_tokens, 0), n);
  int32_t* out = p.tokens + pair * p.max_tokens;
  auto rank_tokens = [&](const auto& keys) {
    typename Top::Cut cut{0, n};
    if (keep == 0) cut = {kForcedKey, 0};
    if (keep > 0 && keep < n) cut = Top::ByCount(sh.top, keys, keep);
    if (row.top_p < 1.0f && keep > 0) {
      unsigned long long total, forced_total;
      Top::Scan(sh.top, 1, mass, &total);
      Top::Scan(sh.top, 2, forced_mass, &forced_total);
      cut = Top::ByMass(sh.top, keys, n, cut, row.top_p, total, forced_total);
    }
    return Top::Emit(sh.top, keys, cut, [&](int i, int at) { out[at] = position_of(i); });
  };
  int count;
  if (n <= kHeldKeys * kThreads) {
    count = rank_tokens(RegisterKeys<kHeldKeys>(n, key_of));
  } else {
    uint32_t* keys = in_shared ? sh.keys : far_keys;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) keys[i] = key_of(i);
    __syncthreads();
    count = rank_tokens(MemoryKeys(keys, n));
  }
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
  const Params p{.slots = a.slot_table.data,
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
                 .table_width = a.slot_table.dim(1),
                 .list_width = a.out.blocks.dim(2),
                 .max_tokens = a.out.tokens.dim(2),
                 .groups = groups,
                 .heads = static_cast<int>(a.turned.code8.dim(1)) / groups};
  assert(p.heads <= kMaxHeads);
  const bool few = p.heads <= 4, clusters = state_->major >= 9;
  const auto kernel = clusters ? (few ? SelectTokensKernel<kClusterRanks, true>
                                      : SelectTokensKernel<kClusterRanks, false>)
                               : (few ? SelectTokensKernel<1, true> : SelectTokensKernel<1, false>);
  const unsigned ranks = clusters ? kClusterRanks : 1;
  state_->AllowShared(reinterpret_cast<const void*>(kernel));
  LaunchClusters(
      *state_,
      ranks,
      kernel,
      dim3(ranks, static_cast<unsigned>(groups), static_cast<unsigned>(a.rows.dim(0))),
      kThreads,
      sizeof(Shared),
      p);
}

}  // namespace asynctls
