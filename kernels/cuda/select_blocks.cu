// SPDX-License-Identifier: Apache-2.0
// Level 1: turns the queries, scores every key code, keeps the best blocks; one launch.
//
// A (row, KV head) is cut into pieces of blocks, one thread block each (integers: how it is cut
// cannot matter). The codes come in by asynchronous copies while the queries are turned. Then a
// warp takes a block of 64 positions: the codes' bytes are the rows of an integer matrix product
// whose columns are the query heads. The last piece of a (row, KV head) to be done keeps the best.
#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"
#include "kernels/cuda/top_k.cuh"

namespace asynctls {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kStages = 8;                                            // blocks in flight per warp
constexpr int kBlockBytes = kCodeWords * kBlockPositions * 4;         // part 1 of one head
constexpr int kColumns = 8;                                           // query heads of a product
constexpr int kRingBytes = kWarps * kStages * kBlockBytes;

struct Params {
  const bf16* q;            // [S, Q, D]
  const int32_t* slots;     // [L, M]
  const DecodeRow* rows;    // [S]
  const float* turn;        // [G, D, r]
  const uint32_t* first;    // [N, G, 2, P]
  int8_t* code8;            // [S, Q, r]
  float* turned_scale;      // [S, Q]
  int32_t* lag;             // [L, G, M + 1]
  int32_t* blocks;          // [S, G, M of out]
  int32_t* block_count;     // [S, G]
  int32_t* nan_heads;       // [S, G]
  uint32_t* keys;           // [S, G, M]
  uint32_t* scored;         // [S, G]
  int64_t table_width;      // M
  int64_t list_width;       // M of out
  int groups, heads, dim;   // G, R, D
  float scale;
};

// Per query head, for the scores.
struct Turned {
  float scale;  // NaN: left out
  int zero;     // what the product of an all-zero code word would be
};

// Turns head `h` of the group; the warp's lanes are the directions. `table` [D, r] and `q` [D] lie
// in shared memory.
__device__ void TurnHead(const float* q,
                         const float* table,
                         int dim,
                         float attention_scale,
                         int8_t* code8,
                         Turned* turned) {
  const int c = threadIdx.x % 32;
  const float product = gpu::ExactProduct(
      dim, [&](int d) { return q[d]; }, [&](int d) { return table[d * kCodeDirections + c]; });
  const float magnitude = fabsf(product);
  const bool finite = __all_sync(kAllLanes, magnitude <= kTurnedLargest);
  const float m = WarpMax(finite ? magnitude : 0.0f);
  int code = 0;
  float scale = finite ? 0.0f : __uint_as_float(0x7fc00000u);
  if (finite && m >= kTurnedSmallest) {
    code = __float2int_rn(product * (127.0f / m));
    scale = m * (attention_scale / 254.0f);
  }
  code8[c] = static_cast<int8_t>(code);
  const int weight = c < kFineDirections                        ? 15
                     : c < kFineDirections + kCoarseDirections ? 12
                                                               : 0;
  const int zero = -__reduce_add_sync(kAllLanes, code * weight);
  if (c == 0) *turned = {scale, zero};
}

// The score of one block as an ordered key; in all lanes. `codes`: its part 1 in shared memory.
__device__ uint32_t ScoreBlock(const uint32_t* codes,
                               const int8_t* code8,
                               const Turned* turned,
                               int heads,
                               int positions) {
  const int lane = threadIdx.x % 32, t = lane % 4, quad = lane / 4;
  uint4 word[2][2];  // [fine, coarse][positions 4 quad.., 32 + 4 quad..]
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      word[i][j] = *reinterpret_cast<const uint4*>(codes + i * kBlockPositions + 32 * j + 4 * quad);
    }
  }
  const auto* fine_low = reinterpret_cast<const uint32_t*>(&word[0][0]);
  const auto* fine_high = reinterpret_cast<const uint32_t*>(&word[0][1]);
  const auto* coarse_low = reinterpret_cast<const uint32_t*>(&word[1][0]);
  const auto* coarse_high = reinterpret_cast<const uint32_t*>(&word[1][1]);
  const uint32_t fine_mask = t < 2 ? 0x0f0f0f0fu : 0;
  const int turn = (2 * t - 2) & 31;
  float best_score = kNegativeInfinity;
  for (int column = 0; column < heads; column += kColumns) {
    const int head = column + quad;
    uint32_t b0 = 0, b1 = 0;
    if (head < heads) {
      const auto* q = reinterpret_cast<const uint32_t*>(code8 + head * kCodeDirections);
      b0 = q[kFineDirections / 4 + t];
      b1 = t < 2 ? q[t] : 0;
    }
    int top[2] = {INT_MIN, INT_MIN};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t a[4] = {__funnelshift_r(coarse_low[i], coarse_low[i], turn) & 0x0c0c0c0cu,
                             __funnelshift_r(coarse_high[i], coarse_high[i], turn) & 0x0c0c0c0cu,
                             fine_low[i] >> (4 * (t & 1)) & fine_mask,
                             fine_high[i] >> (4 * (t & 1)) & fine_mask};
      int c[4];
      MultiplyBytes(c, a, b0, b1);
      if (positions < kBlockPositions) {
        if (4 * quad + i >= positions) c[0] = c[1] = INT_MIN;
        if (32 + 4 * quad + i >= positions) c[2] = c[3] = INT_MIN;
      }
      top[0] = max(top[0], max(c[0], c[2]));
      top[1] = max(top[1], max(c[1], c[3]));
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      top[j] = max(top[j], __shfl_xor_sync(kAllLanes, top[j], 4));
      top[j] = max(top[j], __shfl_xor_sync(kAllLanes, top[j], 8));
      top[j] = max(top[j], __shfl_xor_sync(kAllLanes, top[j], 16));
      const int h = column + 2 * t + j;
      if (h < heads && !isnan(turned[h].scale)) {
        best_score = fmaxf(best_score,
                           static_cast<float>(2 * top[j] + turned[h].zero) * turned[h].scale);
      }
    }
  }
  best_score = fmaxf(best_score, __shfl_xor_sync(kAllLanes, best_score, 1));
  best_score = fmaxf(best_score, __shfl_xor_sync(kAllLanes, best_score, 2));
  return gpu::OrderedKey(best_score);
}

// The exchange with the previous step (ExchangeLag of kernels/ref/selection.h). `list` in shared
// memory has room for three more than it may hold; returns the new count.
__device__ int ExchangeLag(const DecodeRow& row, int32_t* kept, int32_t* list, int count) {
  if (row.lag == DecodeRow::kLaggedFirst) {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) kept[1 + i] = list[i];
    if (threadIdx.x == 0) kept[0] = count;
    return count;
  }
  __shared__ int new_count;
  const int before = kept[0];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < max(count, before); i += kThreads) {
    const int32_t own = i < count ? list[i] : 0;
    if (i < before) list[i] = kept[1 + i];
    if (i < count) kept[1 + i] = own;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    kept[0] = count;
    int n = before;
    const int now = (row.length + kBlockPositions - 1) / kBlockPositions;
    while (n > 0 && list[n - 1] >= now) --n;
    const int32_t wanted[3] = {0, now - 2, now - 1};
    for (int w = 0; w < 3; ++w) {
      if (wanted[w] < 0) continue;
      int at = n;
      while (at > 0 && list[at - 1] > wanted[w]) --at;
      if (at > 0 && list[at - 1] == wanted[w]) continue;
      for (int i = n; i > at; --i) list[i] = list[i - 1];
      list[at] = wanted[w];
      ++n;
    }
    new_count = n;
  }
  __syncthreads();
  return new_count;
}

__global__ void __launch_bounds__(kThreads) SelectBlocksKernel(const Params p) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint32_t place;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int pieces = static_cast<int>(gridDim.x), piece = static_cast<int>(blockIdx.x);
  const int g = static_cast<int>(blockIdx.y);
  const int64_t s = blockIdx.z, pair = s * p.groups + g;
  // Shared: the ring of codes | turn table [D, r] | q [R, D] | code8 [R, r] | Turned [R].
  auto* table = reinterpret_cast<float*>(shared + kRingBytes);
  float* q = table + p.dim * kCodeDirections;
  auto* code8 = reinterpret_cast<int8_t*>(q + p.heads * p.dim);
  auto* turned = reinterpret_cast<Turned*>(code8 + p.heads * kCodeDirections);
  // The table never changes while the model serves: read it before waiting.
  const float* turn = p.turn + int64_t{g} * p.dim * kCodeDirections;
  for (int i = static_cast<int>(threadIdx.x); i < p.dim * kCodeDirections / 4; i += kThreads) {
    CopyAsync16(SharedAddress(table + 4 * i), turn + 4 * i);
  }
  CopyCommit();
  GridWait();
  GridTrigger();

  const DecodeRow row = p.rows[s];
  const int blocks = (row.length + kBlockPositions - 1) / kBlockPositions;
  if (blocks == 0) {
    if (piece == 0 && threadIdx.x == 0) p.block_count[pair] = p.nan_heads[pair] = 0;
    return;
  }
  const int per_piece = max(kWarps, (blocks + pieces - 1) / pieces);
  const int used = (blocks + per_piece - 1) / per_piece;
  if (piece >= used) return;
  const int begin = piece * per_piece, end = min(blocks, begin + per_piece);
  const int mine = max(0, (end - begin - warp + kWarps - 1) / kWarps);  // this warp's blocks

  const uint32_t ring =
      SharedAddress(shared) + static_cast<uint32_t>(warp * kStages * kBlockBytes);
  const int32_t* slots = p.slots + row.lane * p.table_width;
  int32_t slot_ahead = 0;  // of the warp's block number (i / 32 * 32 + lane)
  auto fetch = [&](int i) {
    if (i % 32 == 0) {
      const int ahead = i + lane;
      slot_ahead = ahead < mine ? slots[begin + warp + kWarps * ahead] : 0;
    }
    const int64_t slot = __shfl_sync(kAllLanes, slot_ahead, i % 32);
    if (i < mine) {
      const uint32_t* from =
          p.first + (slot * p.groups + g) * kCodeWords * kBlockPositions + 4 * lane;
      CopyAsync16(ring + static_cast<uint32_t>(i % kStages * kBlockBytes + 16 * lane), from);
    }
    CopyCommit();
  };
  const bf16* query = p.q + (s * p.groups + g) * p.heads * p.dim;
  for (int i = static_cast<int>(threadIdx.x); i < p.heads * p.dim; i += kThreads) {
    q[i] = Widen(query[i]);
  }
#pragma unroll
  for (int i = 0; i < kStages; ++i) fetch(i);
  CopyWait<kStages>();  // the table
  __syncthreads();
  for (int h = warp; h < p.heads; h += kWarps) {
    TurnHead(q + h * p.dim, table, p.dim, p.scale, code8 + h * kCodeDirections, turned + h);
  }
  __syncthreads();
  if (piece == 0) {
    const int64_t head = pair * p.heads;
    for (int i = static_cast<int>(threadIdx.x); i < p.heads * kCodeDirections; i += kThreads) {
      p.code8[head * kCodeDirections + i] = code8[i];
    }
    for (int h = static_cast<int>(threadIdx.x); h < p.heads; h += kThreads) {
      p.turned_scale[head + h] = turned[h].scale;
    }
  }

  uint32_t* keys = p.keys + pair * p.table_width;
  for (int i = 0; i < mine; ++i) {
    CopyWait<kStages - 1>();
    __syncwarp();
    const int block = begin + warp + kWarps * i;
    const auto* codes = reinterpret_cast<const uint32_t*>(
        shared + (warp * kStages + i % kStages) * kBlockBytes);
    uint32_t key = ScoreBlock(
        codes, code8, turned, p.heads, min(kBlockPositions, row.length - block * kBlockPositions));
    if (gpu::BlockIsForced(block, blocks)) key = kForcedKey;
    if (lane == 0) keys[block] = key;
    __syncwarp();
    fetch(i + kStages);
  }

  // The last piece to be done keeps the best.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) place = atomicAdd(&p.scored[pair], 1);
  __syncthreads();
  if (place != static_cast<uint32_t>(used - 1)) return;
  __threadfence();
  CopyWait<0>();
  __shared__ TopK<kThreads>::Scratch scratch;
  int nan_heads = 0;
  for (int h = 0; h < p.heads; ++h) nan_heads += isnan(turned[h].scale);
  __syncthreads();
  auto* mine_keys = reinterpret_cast<uint32_t*>(shared);  // over everything else
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads) {
    mine_keys[i] = __ldcg(keys + i);
  }
  auto* list = reinterpret_cast<int32_t*>(shared) + blocks;
  __syncthreads();
  const int keep = min(max(row.max_blocks, 0), blocks);
  using Top = TopK<kThreads>;
  typename Top::Cut cut{0, blocks};  // all
  if (keep == 0) cut = {kForcedKey, 0};
  if (keep > 0 && keep < blocks) cut = Top::ByCount(scratch, mine_keys, blocks, keep);
  int count = Top::Emit(
      scratch, mine_keys, blocks, cut, [&](int i, int at) { list[at] = i; });
  __syncthreads();
  if (row.lag != DecodeRow::kExact) {
    count = ExchangeLag(
        row, p.lag + (int64_t{row.lane} * p.groups + g) * (p.table_width + 1), list, count);
  }
  int32_t* out = p.blocks + pair * p.list_width;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) out[i] = list[i];
  if (threadIdx.x == 0) {
    p.block_count[pair] = count;
    p.nan_heads[pair] = nan_heads;
    p.scored[pair] = 0;
  }
}

}  // namespace

void CudaOps::SelectBlocks(const SelectBlocksArgs& a) {
  if (a.rows.empty()) return;
  const auto groups = static_cast<int>(a.code.turn.dim(0));
  const int64_t rows = a.rows.dim(0), max_blocks = a.slot_table.dim(1);
  const Params p{.q = a.q.data,
                 .slots = a.slot_table.data,
                 .rows = a.rows.data,
                 .turn = a.code.turn.data,
                 .first = a.codes.first.data,
                 .code8 = a.turned.code8.data,
                 .turned_scale = a.turned.scale.data,
                 .lag = a.lag.data,
                 .blocks = a.out.blocks.data,
                 .block_count = a.out.block_count.data,
                 .nan_heads = a.out.nan_heads.data,
                 .keys = state_->block_keys.data,
                 .scored = state_->scored.data,
                 .table_width = max_blocks,
                 .list_width = a.out.blocks.dim(2),
                 .groups = groups,
                 .heads = static_cast<int>(a.q.dim(1)) / groups,
                 .dim = static_cast<int>(a.q.dim(2)),
                 .scale = a.scale};
  assert(rows * groups * max_blocks <= state_->block_keys.size());
  const int64_t wanted = (4 * state_->multiprocessors + rows * groups - 1) / (rows * groups);
  const int64_t pieces = std::clamp<int64_t>((max_blocks + kWarps - 1) / kWarps, 1, wanted);
  const size_t scoring = kRingBytes + sizeof(float) * p.dim * (kCodeDirections + p.heads) +
                         p.heads * (kCodeDirections + sizeof(Turned));
  const size_t keeping = sizeof(uint32_t) * (2 * max_blocks + 8);
  const size_t shared = std::max(scoring, keeping);
  state_->AllowShared(reinterpret_cast<const void*>(SelectBlocksKernel));
  Launch(*state_,
         SelectBlocksKernel,
         dim3(static_cast<unsigned>(pieces),
              static_cast<unsigned>(groups),
              static_cast<unsigned>(rows)),
         kThreads,
         shared,
         p);
}

}  // namespace asynctls
