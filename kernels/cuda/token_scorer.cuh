// SPDX-License-Identifier: Apache-2.0
// Scores the tokens of the selected blocks of one (row, KV head): what a cluster of thread blocks
// of select_tokens.cu does before the best are kept.
//
// A warp takes a block of 64 positions: both parts of the code, put together, are the rows of an
// integer matrix product whose columns are the query heads; the products go to shared memory. From
// there on a thread has a token: weights when the heads' largest products have gone around the
// cluster, scores when the sums of the weights have. The scores meet in the first thread block: as
// keys, and counted, where it can keep them in registers. Code that runs once is not unrolled: it
// would take longer to fetch than to run.
#pragma once

#include <climits>
#include <type_traits>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/slots.cuh"
#include "kernels/cuda/top_k.cuh"
#include "kernels/ops.h"

namespace asynctls {

constexpr int kWarps = 16, kThreads = 32 * kWarps;
constexpr int kColumns = 8;        // query heads of a product
constexpr int kMaxHeads = 32;      // of one KV head
constexpr int kMostRanks = 4;      // thread blocks of a cluster
constexpr int kRoundBlocks = 64;   // blocks that a cluster has in shared memory at a time
constexpr int kSharedKeys = 6144;  // candidates whose keys fit shared memory
constexpr int kListed = kSharedKeys / kBlockPositions;  // blocks of the list that do
constexpr int kHeldKeys = 8;  // of a thread: up to 4,096 candidates are ranked in registers

// Scores of tokens, which are sums of at most kMaxHeads shares of a whole: from 2^-57 to 2^7 by
// exponent and five bits. Only a score of 0 is smaller: a share that is not 0 is 2^-24 of the
// largest or more, and there are fewer than 2^33.
constexpr uint32_t kNoScore = 0x80000000u, kLowestKey = kNoScore | (127u - 57) << 23;
using Bins = KeyBins<kLowestKey, 18, 2048, kNoScore>;
using Top = TopK<kThreads, Bins>;

struct TokenParams {
  const int32_t* slots;   // [L, M]
  const DecodeRow* rows;  // [S]
  const uint32_t* first;  // [N, G, 2, P]
  const uint32_t* second;
  const int8_t* code8;    // [S, Q, r]
  const float* scale;     // [S, Q]
  const int32_t* blocks;  // [S, G, M of out]
  const int32_t* block_count;
  int32_t* tokens;  // [S, G, K]
  int32_t* token_count;
  int32_t* touched;
  uint32_t* keys;       // [S, G, M P] in global memory
  int64_t table_width;  // M
  int64_t list_width;   // M of out
  int64_t max_tokens;   // K
  int groups, heads;
};

// Shared memory: this, then the products or weights [heads of a tile][tokens of the round here],
// then the other thread blocks' counts [ranks - 1][Bins::kCount].
struct TokenShared {
  Top::Scratch top;
  alignas(16) uint32_t bins[Bins::kCount];        // how many keys of this thread block are in each
  unsigned long long warp_sum[kColumns][kWarps];  // of the weights
  unsigned long long sum[kMostRanks][kColumns];   // of each thread block
  int all_largest[kMostRanks][kColumns];          // products, of each thread block
  ByteBarrier sums_there, largest_there, scores_there;  // from all thread blocks
  int largest[kMaxHeads];                               // products, of this one
  float scale[kMaxHeads];                               // NaN: left out
  int zero[kMaxHeads];       // what the product of all-zero codes would be
  float inverse[kMaxHeads];  // of the sum over the cluster, 0: left out
  alignas(16) int8_t code8[kMaxHeads * kCodeDirections];
  int touched;
  int32_t list[kListed];
  int32_t slots[kSlotsInShared];
  alignas(16) uint32_t keys[kSharedKeys];
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
        coarse[j][i] = (__funnelshift_r(h, h, turn) & 0x0c0c0c0cu) | (l >> (2 * t) & 0x03030303u);
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

// A thread block's part in scoring the tokens of the selected blocks. Blocks are taken in rounds of
// kRoundBlocks, kOwnBlocks of them here: block `own` of a round is number FirstOf(round) + own of
// the list.
template <int kRanks>
struct TokenScorer {
  static constexpr int kOwnBlocks = kRoundBlocks / kRanks;
  static constexpr int kRow = kOwnBlocks * kBlockPositions;  // products of a head

  const TokenParams& p;
  TokenShared& sh;
  const int lane_of_row, length, blocks;
  int n;              // candidates
  bool ranked;        // scores become keys and are counted at once; one round, one tile of heads
  int column, heads;  // the heads being worked on

  // What is cheaper to find again than to keep in a register.
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int rank() { return static_cast<int>(blockIdx.x); }
  __device__ int64_t pair() const { return int64_t{blockIdx.z} * p.groups + blockIdx.y; }
  __device__ const int32_t* far_list() const { return p.blocks + pair() * p.list_width; }
  __device__ const int32_t* far_slots() const { return p.slots + lane_of_row * p.table_width; }
  __device__ uint32_t* far_keys() const {
    return p.keys + pair() * p.table_width * kBlockPositions;
  }
  __device__ uint32_t* values() const {  // [heads][kRow]
    return reinterpret_cast<uint32_t*>(&sh + 1);
  }

  __device__ int Listed(int at) const { return at < kListed ? sh.list[at] : far_list()[at]; }
  __device__ int PositionsIn(int block) const {
    return min(kBlockPositions, length - block * kBlockPositions);
  }
  __device__ int FirstOf(int round) const { return round * kRoundBlocks + rank() * kOwnBlocks; }
  __device__ int OwnOf(int round) const { return min(kOwnBlocks, blocks - FirstOf(round)); }
  __device__ bool KeysFit() const { return n <= kSharedKeys; }

  // Products of one round to shared memory; their maxima to sh.largest.
  __device__ void Multiply(int round) {
    const int t = lane() % 4, quad = lane() / 4, first = FirstOf(round);
    const int g = static_cast<int>(blockIdx.y);
    int top[2] = {INT_MIN, INT_MIN};
    const int count = OwnOf(round);
    auto place_of = [&](int block) {
      const int64_t slot = p.table_width <= kSlotsInShared ? sh.slots[block] : far_slots()[block];
      return (slot * p.groups + g) * kCodeWords * kBlockPositions;
    };
    // Level 1 has just read the first parts; the second ones come from memory, all at once.
    constexpr int kLineWords = 32, kLines = kCodeWords * kBlockPositions / kLineWords;
#pragma unroll 1
    for (int own = warp() + kWarps; own < count; own += kWarps) {
      if (lane() >= kLines) break;
      PrefetchL2(p.second + place_of(Listed(first + own)) + kLineWords * lane());
    }
#pragma unroll 1
    for (int own = warp(); own < count; own += kWarps) {
      const int block = Listed(first + own), positions = PositionsIn(block);
      const int64_t place = place_of(block);
      const BlockCodes codes(p.first + place, p.second + place);
      int c[4][4];
      codes.Multiply(sh.code8 + column * kCodeDirections, heads, c);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          int4 x;
          int* product = &x.x;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const bool there = 32 * half + 4 * quad + i < positions;
            product[i] = there ? c[i][2 * half + j] : INT_MIN;
            top[j] = max(top[j], product[i]);
          }
          if (2 * t + j >= heads) continue;
          *reinterpret_cast<int4*>(values() + (2 * t + j) * kRow + own * kBlockPositions +
                                   32 * half + 4 * quad) = x;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll 1
      for (int i = 4; i < 32; i <<= 1) {
        top[j] = max(top[j], __shfl_xor_sync(kAllLanes, top[j], i));
      }
      if (lane() < 4 && 2 * t + j < heads) atomicMax(&sh.largest[column + 2 * t + j], top[j]);
    }
  }

  // The round's products to weights, 128 tokens of a head a warp; its sum of them grows.
  __device__ void Weigh(int round) {
    constexpr int kRuns = kRow / 128;
    const int tokens = OwnOf(round) * kBlockPositions;
#pragma unroll 1
    for (int item = warp(); item < heads * kRuns; item += kWarps) {
      const int h = item / kRuns, i = item % kRuns * 128 + 4 * lane();
      const float scale = sh.scale[column + h];
      const int zero = sh.zero[column + h];
      int product_there = INT_MIN;
#pragma unroll
      for (int r = 0; r < kRanks; ++r) product_there = max(product_there, sh.all_largest[r][h]);
      const float largest = static_cast<float>(2 * product_there + zero) * scale;
      const bool there = !isnan(scale);
      auto weight = [&](uint32_t bits) {
        const float logit = gpu::FloatOf(static_cast<int>(bits << 1) + zero) * scale;
        const uint32_t exp = gpu::FixedExp2((logit - largest) * kLog2E);
        return there & (bits != static_cast<uint32_t>(INT_MIN)) ? exp : 0;
      };
      uint4 x = make_uint4(0, 0, 0, 0);
      if (i < tokens) {
        auto* at = reinterpret_cast<uint4*>(values() + h * kRow + i);
        x = *at;
        *at = x = make_uint4(weight(x.x), weight(x.y), weight(x.z), weight(x.w));
      }
      const uint32_t sum = (x.x + x.y) + (x.z + x.w);  // 2^26 at most; 32 of them need 64 bits
      const unsigned long long total =
          (static_cast<unsigned long long>(__reduce_add_sync(kAllLanes, sum >> 16)) << 16) +
          __reduce_add_sync(kAllLanes, sum & 0xffffu);
      if (lane() == 0) sh.warp_sum[h][warp()] += total;
    }
  }

  // The keys of candidates i .. i + 3 from their scores, which are not negative; counted.
  __device__ uint4 Ranked(int i, uint4 score) const {
    const int position = Listed(i / kBlockPositions) * kBlockPositions + i % kBlockPositions;
    auto ranked = [&](int j, uint32_t x) {
      const uint32_t key = gpu::TokenIsForced(position + j, length) ? kForcedKey : x | kNoScore;
      if (i + j < n) atomicAdd(&sh.bins[Bins::Of(key)], 1u);
      return key;
    };
    return make_uint4(
        ranked(0, score.x), ranked(1, score.y), ranked(2, score.z), ranked(3, score.w));
  }

  // The heads' shares to the scores, head by head; four tokens a thread. Positions of the last
  // block that are not there get scores too, and nobody looks at them.
  __device__ void Add(int round) {
    const int first = FirstOf(round) * kBlockPositions, tokens = OwnOf(round) * kBlockPositions;
#pragma unroll 1
    for (int i = 4 * static_cast<int>(threadIdx.x); i < tokens; i += 4 * kThreads) {
      const uint32_t at = ClusterAddress<kRanks>(sh.keys + (KeysFit() ? first + i : 0), 0);
      auto* far = reinterpret_cast<uint4*>(far_keys() + first + i);
      uint4 x = make_uint4(0, 0, 0, 0);  // of floats
      if (column > 0) x = KeysFit() ? ClusterLoad4<kRanks>(at) : *far;
#pragma unroll 1
      for (int h = 0; h < heads; ++h) {
        const uint4 weight = *reinterpret_cast<const uint4*>(values() + h * kRow + i);
        const float inverse = sh.inverse[column + h];
        auto grown = [&](uint32_t w, uint32_t score) {
          return __float_as_uint(fmaf(__uint2float_rn(w), inverse, __uint_as_float(score)));
        };
        x = make_uint4(
            grown(weight.x, x.x), grown(weight.y, x.y), grown(weight.z, x.z), grown(weight.w, x.w));
      }
      if (ranked) x = Ranked(first + i, x);
      if (ranked && kRanks > 1 && rank() > 0) {
        Send(at, x, ClusterAddress<kRanks>(&sh.scores_there, 0));
      } else if (KeysFit()) {
        ClusterStore4<kRanks>(at, x);
      } else {
        *far = x;
      }
    }
  }

  // Of heads column and on: sends what this thread block has of each, `mine(h)`, to all of them, as
  // element [rank][h] of `all`, and waits for theirs. Phases of `there` are tiles of heads.
  template <typename T, typename Mine>
  __device__ void GoRound(T (&all)[kMostRanks][kColumns], ByteBarrier& there, Mine mine) {
    const int at = static_cast<int>(threadIdx.x), h = at % kColumns, to = at / kColumns;
    if (h < heads && to < kRanks) {
      const T x = mine(h);
      if constexpr (kRanks == 1) {
        all[0][h] = x;
      } else {
        using Word = std::conditional_t<sizeof(T) == 4, uint32_t, unsigned long long>;
        Send(ClusterAddress<kRanks>(&all[rank()][h], to),
             static_cast<Word>(x),
             ClusterAddress<kRanks>(&there, to));
      }
    }
    if constexpr (kRanks == 1) {
      __syncthreads();
    } else {
      if (at == 0) BarrierExpect(&there, static_cast<uint32_t>(heads * kRanks * sizeof(T)));
      BarrierWait(&there, column / kColumns % 2);
    }
  }

  // The largest product of each head, from all thread blocks.
  __device__ void JoinLargest() {
    __syncthreads();
    GoRound(sh.all_largest, sh.largest_there, [&](int h) { return sh.largest[column + h]; });
  }

  // The inverse of the sum of each head's weights, from all thread blocks.
  __device__ void JoinSums() {
    __syncthreads();
    GoRound(sh.sum, sh.sums_there, [&](int h) {
      unsigned long long sum = 0;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) sum += sh.warp_sum[h][i];
      return sum;
    });
    if (static_cast<int>(threadIdx.x) < heads) {
      unsigned long long z = 0;
#pragma unroll
      for (int r = 0; r < kRanks; ++r) z += sh.sum[r][threadIdx.x];
      sh.inverse[column + threadIdx.x] = z == 0 ? 0 : 1.0f / __ull2float_rn(z);
    }
    __syncthreads();
  }

  // All of it for heads column .. column + heads. One round stays in shared memory from the
  // products to the scores; more are computed again.
  __device__ void Score() {
    const int rounds = (blocks + kRoundBlocks - 1) / kRoundBlocks;
    if (lane() < kColumns) sh.warp_sum[lane()][warp()] = 0;
#pragma unroll 1
    for (int round = rounds - 1; round >= 0; --round) Multiply(round);
    JoinLargest();
#pragma unroll 1
    for (int round = rounds - 1; round >= 0; --round) {
      if (rounds > 1) {
        Multiply(round);
        __syncthreads();
      }
      Weigh(round);
      if (rounds > 1) __syncthreads();
    }
    JoinSums();
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
      if (round > 0) {
        Multiply(round);
        __syncthreads();
        Weigh(round);
        __syncthreads();
      }
      Add(round);
      if (rounds > 1) __syncthreads();
    }
    if (ranked && kRanks > 1) return MeetRanked();
    if (!KeysFit()) __threadfence();
    ClusterSync<kRanks>();
  }

  // From the products to the scores, by all heads. All threads of the cluster.
  __device__ void ScoreAll() {
    for (column = 0; column < p.heads; column += kColumns) {
      heads = min(kColumns, p.heads - column);
      Score();
    }
  }

  // The counts of the other thread blocks are in the first one, behind its values.
  __device__ uint32_t* BinsOf(int from) const {
    return values() + heads * kRow + (from - 1) * Bins::kCount;
  }
  // Sends the counts after the keys; the first thread block waits for all of them.
  __device__ void MeetRanked() {
    __syncthreads();
    if (rank() > 0) {
      const uint32_t there = ClusterAddress<kRanks>(&sh.scores_there, 0);
      for (int i = 4 * static_cast<int>(threadIdx.x); i < Bins::kCount; i += 4 * kThreads) {
        Send(ClusterAddress<kRanks>(BinsOf(rank()) + i, 0),
             *reinterpret_cast<const uint4*>(sh.bins + i),
             there);
      }
      return;
    }
    const int others = max(0, blocks - kOwnBlocks) * kBlockPositions + (kRanks - 1) * Bins::kCount;
    if (threadIdx.x == 0) BarrierExpect(&sh.scores_there, static_cast<uint32_t>(others * 4));
    BarrierWait(&sh.scores_there, 0);
  }
  // How many keys are in bins i .. i + 3, of the whole cluster.
  __device__ uint4 Counted(int i) const {
    uint4 all = *reinterpret_cast<const uint4*>(sh.bins + i);
#pragma unroll
    for (int r = 1; r < kRanks; ++r) {
      const uint4 x = *reinterpret_cast<const uint4*>(BinsOf(r) + i);
      all = make_uint4(all.x + x.x, all.y + x.y, all.z + x.z, all.w + x.w);
    }
    return all;
  }
};

}  // namespace asynctls
