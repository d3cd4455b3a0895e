// SPDX-License-Identifier: Apache-2.0
// Level 1: scores every key code, keeps the best blocks; one launch.
//
// A (row, KV head) is cut into pieces of blocks, one thread block each (integers: how it is cut
// cannot matter). A warp takes four blocks of 64 positions at a time: the codes' bytes are the rows
// of an integer matrix product whose columns are the query heads. The last piece of a (row, KV
// head) to be done keeps the best.
//
// The first codes come in before the queries are there. Those of the last block do not come at all:
// it is kept whatever its score, it alone may not be full, and its newest code is still being
// written.
#include "kernels/cuda/block_scorer.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"
#include "kernels/cuda/top_k.cuh"

namespace asynctls {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kResident = 3;  // thread blocks of a multiprocessor
constexpr int kStages = 3;    // groups in flight per warp
constexpr int kGroupBytes = kGroup * kBlockBytes;
constexpr int kRingBytes = kWarps * kStages * kGroupBytes;
constexpr int kHeldKeys = 8;  // of a thread: up to 2,048 blocks are ranked in registers

// Scores of blocks by sign, exponent and three bits: numbers are neither in the first bin nor in
// the last.
using Bins = KeyBins<0, 20, 4096, 0>;
using Top = TopK<kThreads, Bins>;
constexpr int kBinBytes = Bins::kCount * 4;
static_assert(kBinBytes <= kRingBytes);

struct Params {
  const int32_t* slots;       // [L, M]
  const DecodeRow* rows;      // [S]
  const uint32_t* first;      // [N, G, 2, P]
  const int8_t* code8;        // [S, Q, r]
  const float* turned_scale;  // [S, Q], NaN: left out
  int32_t* lag;               // [L, G, M + 1]
  int32_t* blocks;            // [S, G, M of out]
  int32_t* block_count;       // [S, G]
  int32_t* nan_heads;         // [S, G]
  uint32_t* keys;             // [S, G, M]
  uint32_t* scored;           // [S, G]
  int64_t table_width;        // M
  int64_t list_width;         // M of out
  int groups, heads;          // G, R
};

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

// Registers: kResident of them are on a multiprocessor beside a thread block of AppendKv.
template <typename Scorer, int kRegisters>
__global__ void __launch_bounds__(kThreads) __maxnreg__(kRegisters)
    SelectBlocksKernel(const Params p) {
  GridTrigger();
  auto* shared = DynamicShared<uint8_t>();  // the ring of codes, at the end bins and the list
  __shared__ Top::Scratch scratch;
  __shared__ uint32_t place;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int pieces = static_cast<int>(gridDim.x), piece = static_cast<int>(blockIdx.x);
  const int g = static_cast<int>(blockIdx.y);
  const int64_t s = blockIdx.z, pair = s * p.groups + g;

  const DecodeRow row = p.rows[s];  // no kernel of the step writes it
  const int blocks = (row.length + kBlockPositions - 1) / kBlockPositions;
  constexpr int kTurn = kWarps * kGroup;  // blocks that the warps score at a time
  const int per_piece = (blocks + pieces * kGroup - 1) / (pieces * kGroup) * kGroup;
  const int begin = piece * per_piece + warp * kGroup, end = min(blocks, (piece + 1) * per_piece);
  const int mine = max(0, (end - begin + kTurn - 1) / kTurn);  // this warp's groups
  const int32_t* slots = p.slots + row.lane * p.table_width;
  // Eight lanes copy a block of a group. The slot of the lane's block of group i, -1: none.
  const int fetched_end = min(end, blocks - 1);
  auto slot_of = [&](int i) {
    const int block = begin + kTurn * i + lane / 8;
    return block < fetched_end ? slots[block] : -1;
  };
  const uint8_t* ring = shared + warp * kStages * kGroupBytes;
  const uint32_t own_part = SharedAddress(ring + lane / 8 * kBlockBytes + lane % 8 * 16);
  const uint32_t* from = p.first + g * (kBlockBytes / 4) + lane % 8 * 4;
  const int slot_words = p.groups * (kBlockBytes / 4);
  auto fetch = [&](int32_t slot, int stage) {
    if (slot >= 0) {
      const uint32_t* codes = from + int64_t{slot} * slot_words;
#pragma unroll
      for (int k = 0; k < kBlockBytes / 128; ++k) {
        CopyAsync16(own_part + static_cast<uint32_t>(stage + 128 * k), codes + 32 * k);
      }
    }
    CopyCommit();
  };
  // One group after the other: AppendKv's own reads would wait behind a flood of them.
  int32_t slot_ahead[kStages + 1];
#pragma unroll
  for (int i = 0; i <= kStages; ++i) slot_ahead[i] = slot_of(i);
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    fetch(slot_ahead[i], i * kGroupBytes);
    if (i + 1 < kStages) CopyWait<0>();
  }

  GridWait();
  if (blocks == 0) {
    if (piece == 0 && threadIdx.x == 0) p.block_count[pair] = p.nan_heads[pair] = 0;
    return;
  }
  const int used = (blocks + per_piece - 1) / per_piece;
  if (piece >= used) return;
  uint32_t* keys = p.keys + pair * p.table_width;
  const float* turned_scale = p.turned_scale + pair * p.heads;
  const float scale_of_lane = lane < p.heads ? turned_scale[lane] : 0.0f;  // for the end
  const Scorer scorer(p.code8 + pair * p.heads * kCodeDirections, turned_scale, p.heads);
  int32_t next_slot = slot_ahead[kStages];
  int stage = 0;
#pragma unroll 1
  for (int i = 0; i < mine; ++i) {
    const int32_t slot = next_slot;
    next_slot = slot_of(i + kStages + 1);
    CopyWait<kStages - 1>();
    __syncwarp();
    uint32_t key = scorer.Key(reinterpret_cast<const uint32_t*>(ring + stage));
    const int block = begin + kTurn * i + lane / 8;
    if (gpu::BlockIsForced(block, blocks)) key = kForcedKey;
    if (lane % 8 == 0 && block < end) keys[block] = key;
    __syncwarp();
    fetch(slot, stage);
    stage = stage + kGroupBytes == kStages * kGroupBytes ? 0 : stage + kGroupBytes;
  }

  // The last piece to be done keeps the best.
  __syncthreads();
  if (threadIdx.x == 0) place = ArriveAndCount(&p.scored[pair]);
  auto* bins = reinterpret_cast<uint32_t*>(shared);  // over the ring, which is empty
  auto* list = reinterpret_cast<int32_t*>(shared + kBinBytes);
  Top::Clear(scratch, bins);
  __syncthreads();
  if (place != static_cast<uint32_t>(used - 1)) return;
  const int keep = min(max(row.max_blocks, 0), blocks);
  auto rank = [&](const auto& ranked) {
    Top::Cut cut{0, blocks};  // all
    if (keep == 0) cut = {kForcedKey, 0};
    if (keep > 0 && keep < blocks) {
      Top::Count(bins, ranked);
      __syncthreads();
      const auto counted = [&](int i) { return *reinterpret_cast<const uint4*>(bins + i); };
      cut = Top::ByCount(scratch, ranked, static_cast<uint32_t>(keep), counted, bins);
    }
    return Top::Emit(scratch, ranked, cut, [&](int i, int at) { list[at] = i; });
  };
  int count;
  if (blocks <= kHeldKeys * kThreads) {
    count = rank(RegisterKeys<kHeldKeys>(
        blocks, (blocks + kThreads - 1) / kThreads, [&](int i) { return __ldcg(keys + i); }));
  } else {
    count = rank(MemoryKeys(keys, blocks));
  }
  __syncthreads();
  if (row.lag != DecodeRow::kExact) {
    count = ExchangeLag(
        row, p.lag + (int64_t{row.lane} * p.groups + g) * (p.table_width + 1), list, count);
  }
  int32_t* out = p.blocks + pair * p.list_width;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) out[i] = list[i];
  const uint32_t nan_heads = __ballot_sync(kAllLanes, isnan(scale_of_lane));
  if (threadIdx.x == 0) {
    p.block_count[pair] = count;
    p.nan_heads[pair] = __popc(nan_heads);
    p.scored[pair] = 0;
  }
}

}  // namespace

void CudaOps::SelectBlocks(const SelectBlocksArgs& a) {
  if (a.rows.empty()) return;
  const auto groups = static_cast<int>(a.out.block_count.dim(1));
  const int64_t rows = a.rows.dim(0), max_blocks = a.slot_table.dim(1);
  const Params p{.slots = a.slot_table.data,
                 .rows = a.rows.data,
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
                 .heads = static_cast<int>(a.turned.scale.dim(1)) / groups};
  assert(rows * groups * max_blocks <= state_->block_keys.size());
  // All at once.
  const int64_t room = kResident * state_->multiprocessors;
  const int64_t wanted = std::max<int64_t>(1, room / (rows * groups));
  constexpr int64_t kTurn = kWarps * kGroup;
  const int64_t pieces = std::clamp<int64_t>((max_blocks + kTurn - 1) / kTurn, 1, wanted);
  const size_t shared =
      std::max(size_t{kRingBytes}, kBinBytes + sizeof(int32_t) * (max_blocks + 8));
  assert(p.heads <= 4 * kColumns);
  constexpr int kFew = 72, kMost = 255;  // registers
  const auto kernel = p.heads <= PairScorer::kHeads ? SelectBlocksKernel<PairScorer, kFew>
                      : p.heads <= kColumns         ? SelectBlocksKernel<BlockScorer<1>, kFew>
                      : p.heads <= 2 * kColumns     ? SelectBlocksKernel<BlockScorer<2>, kMost>
                                                    : SelectBlocksKernel<BlockScorer<4>, kMost>;
  Launch(*state_,
         kernel,
         dim3(static_cast<unsigned>(pieces),
              static_cast<unsigned>(groups),
              static_cast<unsigned>(rows)),
         kThreads,
         shared,
         p);
}

}  // namespace asynctls
