// SPDX-License-Identifier: Apache-2.0
// Level 2: scores the whole code of every token in the selected blocks, softmax per query head in
// fixed point, keeps the best tokens; one cluster of thread blocks a (row, KV head).
#include "kernels/cuda/state.h"
#include "kernels/cuda/token_scorer.cuh"

namespace asynctls {
namespace {

// Reads the row's list and queries: what can be read without knowing another thing at once. All
// threads of the cluster.
template <int kRanks>
__device__ TokenScorer<kRanks> ReadList(const TokenParams& p,
                                        const DecodeRow& row,
                                        TokenShared& sh) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t pair = int64_t{blockIdx.z} * p.groups + blockIdx.y, head0 = pair * p.heads;
  const int32_t* far_list = p.blocks + pair * p.list_width;
  const int at = static_cast<int>(threadIdx.x);
  const int32_t entry = at < kListed && at < p.list_width ? far_list[at] : 0;
  const int blocks = row.length > 0 ? p.block_count[pair] : 0;
#pragma unroll 1
  for (int h = warp; h < p.heads; h += kWarps) {
    const int code = p.code8[(head0 + h) * kCodeDirections + lane];
    const float scale = p.scale[head0 + h];
    sh.code8[h * kCodeDirections + lane] = static_cast<int8_t>(code);
    const int zero = -15 * __reduce_add_sync(kAllLanes, code);
    if (lane == 0) {
      sh.zero[h] = zero;
      sh.scale[h] = scale;
      sh.largest[h] = INT_MIN;
    }
  }
  if (at < kListed) sh.list[at] = entry;
  if (at == 0) sh.touched = 0;
  __syncthreads();
  TokenScorer<kRanks> scorer{.p = p,
                             .sh = sh,
                             .lane_of_row = row.lane,
                             .length = row.length,
                             .blocks = blocks,
                             .n = 0,
                             .ranked = false,
                             .column = 0,
                             .heads = 0};
  if (blocks > 0) {
    const int last = scorer.Listed(blocks - 1);
    scorer.n = (blocks - 1) * kBlockPositions + scorer.PositionsIn(last);
  }
  scorer.ranked = scorer.n <= kHeldKeys * kThreads && p.heads <= kColumns && row.top_p >= 1.0f;
  return scorer;
}

// Writes the `keep` best of the candidates, whose keys and counts are in shared memory; adds the
// blocks they lie in to sh.touched. Returns how many there are.
template <int kRanks>
__device__ int KeepRanked(const TokenScorer<kRanks>& scorer, int keep, int32_t* out) {
  TokenShared& sh = scorer.sh;
  const int n = scorer.n;
  // A thread's keys lie in one block of positions, and those of eight threads make it up.
  const int first = static_cast<int>(threadIdx.x) * kHeldKeys;
  const int position = (first < n ? sh.list[first / kBlockPositions] : 0) * kBlockPositions +
                       first % kBlockPositions - first;
  static_assert(kHeldKeys == 8 && kHeldKeys * kThreads <= kSharedKeys);
  const uint4 low = *reinterpret_cast<const uint4*>(sh.keys + first);
  const uint4 high = *reinterpret_cast<const uint4*>(sh.keys + first + 4);
  const uint32_t held[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  const RegisterKeys<kHeldKeys> keys(n, kHeldKeys, [&](int i) { return held[i - first]; });
  Top::Cut cut{0, n};  // all
  if (keep == 0) cut = {kForcedKey, 0};
  if (keep > 0 && keep < n) {
    const auto counted = [&](int i) { return scorer.Counted(i); };
    cut = Top::ByCount(sh.top, keys, static_cast<uint32_t>(keep), counted, sh.bins);
  }
  bool any = false;
  const int count = Top::Emit(sh.top, keys, cut, [&](int i, int at) {
    out[at] = position + i;
    any = true;
  });
  uint32_t lanes = __ballot_sync(kAllLanes, any);
  lanes |= lanes >> 4;
  lanes |= lanes >> 2;
  lanes |= lanes >> 1;
  const int touched = __popc(lanes & 0x01010101u);
  if (threadIdx.x % 32 == 0 && touched > 0) atomicAdd(&sh.touched, touched);
  return count;
}

// The same for any number of candidates, of which there are the scores alone, and with top_p.
template <int kRanks>
__device__ int KeepScored(const TokenScorer<kRanks>& scorer,
                          const DecodeRow& row,
                          int keep,
                          int32_t* out) {
  TokenShared& sh = scorer.sh;
  const int n = scorer.n;
  uint32_t* keys = scorer.KeysFit() ? sh.keys : scorer.far_keys();
  auto position_of = [&](int i) {
    return scorer.Listed(i / kBlockPositions) * kBlockPositions + i % kBlockPositions;
  };
  unsigned long long mass = 0, forced_mass = 0;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    const float score = __uint_as_float(scorer.KeysFit() ? keys[i] : __ldcg(keys + i));
    const bool forced = gpu::TokenIsForced(position_of(i), row.length);
    if (row.top_p < 1.0f) {
      mass += gpu::FixedScore(score);
      if (forced) forced_mass += gpu::FixedScore(score);
    }
    keys[i] = forced ? kForcedKey : gpu::OrderedKey(score);
  }
  __syncthreads();
  const MemoryKeys all(keys, n);
  Top::Cut cut{0, n};
  if (keep == 0) cut = {kForcedKey, 0};
  if (keep > 0 && keep < n) {
    Top::Count(sh.bins, all);
    __syncthreads();
    const auto counted = [&](int i) { return *reinterpret_cast<const uint4*>(sh.bins + i); };
    cut = Top::ByCount(sh.top, all, static_cast<uint32_t>(keep), counted, sh.bins);
  }
  if (row.top_p < 1.0f && keep > 0) {
    unsigned long long total, forced_total;
    Top::Scan(sh.top, 2, mass, &total);
    Top::Scan(sh.top, 3, forced_mass, &forced_total);
    cut = Top::ByMass(sh.top, all, n, cut, row.top_p, total, forced_total);
  }
  const int count = Top::Emit(sh.top, all, cut, [&](int i, int at) { out[at] = position_of(i); });
  __syncthreads();
  int touched = 0;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    touched += i == 0 || out[i] / kBlockPositions != out[i - 1] / kBlockPositions;
  }
  touched = __reduce_add_sync(kAllLanes, touched);
  if (threadIdx.x % 32 == 0 && touched > 0) atomicAdd(&sh.touched, touched);
  return count;
}

template <int kRanks>
__global__ void __launch_bounds__(kThreads, kRanks == 1 ? 2 : 1) SelectTokensKernel(const TokenParams p) {
  GridTrigger();
  TokenShared& sh = *DynamicShared<TokenShared>();
  const int64_t pair = int64_t{blockIdx.z} * p.groups + blockIdx.y;
  const DecodeRow row = p.rows[blockIdx.z];  // no kernel of the step writes it, nor the slots
  if constexpr (kRanks > 1) {
    if (threadIdx.x == 0) {
      for (ByteBarrier* b : {&sh.sums_there, &sh.largest_there, &sh.scores_there})
        BarrierInit(b, 1);
    }
    ShareBarriers<kRanks>();
  }
  FetchSlots(p.slots + row.lane * p.table_width, p.table_width, row.length, sh.slots);
  Top::Clear(sh.top, sh.bins);
  GridWait();
  TokenScorer<kRanks> scorer = ReadList<kRanks>(p, row, sh);
  if (scorer.n == 0) {
    if (blockIdx.x == 0 && threadIdx.x == 0) p.token_count[pair] = p.touched[pair] = 0;
    return;
  }
  scorer.ScoreAll();
  if (blockIdx.x != 0) return;

  // The first thread block keeps the best.
  const int keep = min(max(row.max_tokens, 0), scorer.n);
  int32_t* out = p.tokens + pair * p.max_tokens;
  const int count =
      scorer.ranked ? KeepRanked(scorer, keep, out) : KeepScored(scorer, row, keep, out);
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
  const TokenParams p{.slots = a.slot_table.data,
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
  // Large clusters while the machine has room for them: integers, so that it cannot matter.
  const int64_t pairs = a.rows.dim(0) * groups, room = state_->multiprocessors;
  const unsigned ranks = state_->major < 9 || 2 * pairs > room ? 1 : 4 * pairs > room ? 2 : 4;
  const auto kernel = ranks == 4   ? SelectTokensKernel<4>
                      : ranks == 2 ? SelectTokensKernel<2>
                                   : SelectTokensKernel<1>;
  const size_t values = sizeof(uint32_t) * static_cast<size_t>(std::min(p.heads, kColumns)) *
                        kRoundBlocks / ranks * kBlockPositions;
  const size_t bins = sizeof(uint32_t) * Bins::kCount * (ranks - 1);
  LaunchClusters(*state_,
                 ranks,
                 kernel,
                 dim3(ranks, static_cast<unsigned>(groups), static_cast<unsigned>(a.rows.dim(0))),
                 kThreads,
                 sizeof(TokenShared) + values + bins,
                 p);
}

}  // namespace asynctls
