// SPDX-License-Identifier: Apache-2.0
// Softmax attention of one decode row over a list of its positions: all of them (decode_attend.cu)
// or the selected ones (sparse_attend.cu). The query heads of a KV head sit in the columns of the
// matrix product, so that K and V are read once for up to eight of them.
//
// A (row, KV head) is cut into splits, one block each; how many, and where, depends on the number
// of positions alone, which keeps rows independent of each other. A warp takes every fourth
// tile of 16 positions through a ring of its own (no barrier inside the loop), keeps a running
// maximum, and the warps' parts are joined at the end. Then the splits are joined, in their order:
// by the last of them to arrive, through memory, or, where there are few enough for a cluster of
// thread blocks, by all of them through each other's shared memory.
#pragma once

#include "kernels/cuda/attend_join.cuh"
#include "kernels/cuda/attend_plainly.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/slots.cuh"
#include "kernels/cuda/state.h"
#include "kernels/ref/exact.h"

namespace asynctls {

// What both kinds of attention say alike.
inline AttendParams AttendParamsOf(const View<const bf16, 3>& q,
                                   const KvView& kv,
                                   const View<const DecodeRow, 1>& rows,
                                   float scale,
                                   const View<bf16, 2>& out) {
  AttendParams p{};
  p.q = q.data;
  p.kv = kv.rows.data;
  p.slots = kv.slot_table.data;
  p.rows = rows.data;
  p.out = out.data;
  p.table_width = kv.slot_table.dim(1);
  p.groups = static_cast<int>(kv.rows.dim(1));
  p.heads = static_cast<int>(q.dim(1)) / p.groups;
  p.scale = scale * kLog2E;
  return p;
}

// With one stage a warp: as many thread blocks as the clusters of 8 rows need to be there at once.
template <int D, int kStages, bool kSelected, int kRanks>
__global__ void __launch_bounds__(32 * kAttendWarps, kStages == 1 ? 5 : 1)
    AttendKernel(const AttendParams p) {
  GridTrigger();
  auto* shared = DynamicShared<uint8_t>();
  __shared__ uint32_t place;
  const int head_tiles = (p.heads + kColumns - 1) / kColumns;
  const int split = static_cast<int>(blockIdx.x), max_splits = static_cast<int>(gridDim.x);
  const int g = static_cast<int>(blockIdx.y) / head_tiles,
            head_tile = static_cast<int>(blockIdx.y) % head_tiles;
  const int64_t s = blockIdx.z;
  const int heads = min(kColumns, p.heads - head_tile * kColumns);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t pair = s * p.groups + g;
  const DecodeRow row = p.rows[s];  // no kernel of the step writes it, nor the slots
  // Whole block-tiles (kAttendWarps tiles) per split.
  constexpr int kBlockTile = kTile * kAttendWarps;
  int count, splits, begin, end, tiles;
  auto plan = [&](int positions) {
    count = positions;
    const int few = min(p.split_tokens, (count + kFewSplits - 1) / kFewSplits);
    const int wanted = max(max(few, (count + max_splits - 1) / max_splits), 1);
    const int split_tokens = (wanted + kBlockTile - 1) / kBlockTile * kBlockTile;
    splits = max(1, (count + split_tokens - 1) / split_tokens);
    begin = split * split_tokens;
    end = max(begin, min(count, begin + split_tokens));
    tiles = (end - begin + kBlockTile - 1) / kBlockTile;
  };
  // Selected positions are most likely as many as they may be: they are read before it is known.
  plan(kSelected ? min(row.max_tokens, row.length) : row.length);
  const int64_t query_head = int64_t{g} * p.heads + head_tile * kColumns;
  const bf16* query = p.q + (s * p.groups * p.heads + query_head) * D;
  bf16* out = p.out + (s * p.groups * p.heads + query_head) * D;

  using Warp = WarpAttend<D>;
  Warp state;
  const uint32_t ring =
      SharedAddress(shared) + static_cast<uint32_t>(warp * kStages * Warp::kTileBytes);
  const int32_t* tokens = kSelected ? p.tokens + pair * p.max_tokens : nullptr;
  const int32_t* slots = p.slots + row.lane * p.table_width;
  constexpr int kRing = kAttendWarps * kStages * Warp::kTileBytes;
  constexpr int kJoined = sizeof(Joined<D>);
  uint8_t* behind_ring = shared + (kRing > kJoined ? kRing : kJoined);
  auto& meeting = *reinterpret_cast<Meeting*>(behind_ring);  // kRanks > 1
  if (kSelected) {
    if (kRanks > 1) behind_ring += Meeting::Bytes(min(kColumns, p.heads), D);
    if (kRanks > 1 && threadIdx.x == 0) BarrierInit(&meeting.there, 1);
    ShareBarriers<kRanks>();
    auto* here = reinterpret_cast<int32_t*>(behind_ring);
    slots = FetchSlots(slots, p.table_width, row.length, here);
    __syncthreads();
  }

  // The warp's tile number i of the split: where its rows lie (lane r % 16 knows row r), and the
  // start of their copy. Null: no such row.
  auto index_of = [&](int i) { return begin + (i * kAttendWarps + warp) * kTile + lane % kTile; };
  auto position_of = [&](int i) {
    const int index = index_of(i);
    return i >= tiles || index >= end ? -1 : kSelected ? tokens[index] : index;
  };
  auto row_of = [&](int position) -> const bf16* {
    if (position < 0) return nullptr;
    const int64_t slot = slots[position / kBlockPositions];
    return p.kv + ((slot * p.groups + g) * kBlockPositions + position % kBlockPositions) * 2 * D;
  };
  // kPieces 16-byte pieces of every row, from `first` on.
  auto fetch_part = [&]<int kPieces>(int i, const bf16* from, int first) {
    const uint32_t tile = ring + static_cast<uint32_t>(i % kStages * Warp::kTileBytes);
    constexpr int kRowsAtOnce = 32 / kPieces;
    if (i < tiles) {
#pragma unroll
      for (int r = 0; r < kTile; r += kRowsAtOnce) {
        const int line = r + lane / kPieces, chunk = first + lane % kPieces;
        const auto* source = reinterpret_cast<const bf16*>(
            __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(from), line));
        const bool valid = source != nullptr;
        CopyAsync16(Warp::Piece(tile, line, chunk), valid ? source + chunk * 8 : p.kv, valid);
      }
    }
    CopyCommit();
  };
  // With one stage keys and values come one after the other, so that some of them always do.
  constexpr bool kApart = kStages == 1;
  constexpr int kHalf = Warp::kChunks / 2;
  auto fetch = [&](int i, const bf16* from) {
    if constexpr (kApart) {
      fetch_part.template operator()<kHalf>(i, from, 0);
      fetch_part.template operator()<kHalf>(i, from, kHalf);
    } else {
      fetch_part.template operator()<Warp::kChunks>(i, from, 0);
    }
  };

  int position[kStages];
  auto find = [&] {
#pragma unroll
    for (int i = 0; i < kStages; ++i) position[i] = position_of(i);
  };
  const bf16* first_rows[kStages];
  auto locate = [&] {
#pragma unroll
    for (int i = 0; i < kStages; ++i) first_rows[i] = row_of(position[i]);
  };
  auto start = [&] {
#pragma unroll
    for (int i = 0; i < kStages; ++i) fetch(i, first_rows[i]);
  };
  if constexpr (kSelected) {
    GridWait();
    find();
    const int found = p.token_count[pair];
    if (found != count) {
      plan(found);
      find();
    }
    locate();
    start();
  } else {
    // A block without work leaves, so that the blocks of the kernels behind find room; the first
    // split of a row always has some, and waits.
    if (split >= splits) return;
    find();
    locate();
    // Only the newest position's row is being written: the others need not wait for it.
    const int last = begin + ((kStages - 1) * kAttendWarps + warp) * kTile + kTile - 1;
    const bool early = min(last, end - 1) < row.length - 1;
    if (early) start();
    GridWait();
    if (!early) start();
  }
  if (kRanks == 1 && split >= splits) return;
  state.Start(query, heads);
  int next_position = position_of(kStages);
  for (int i = 0; i < tiles; ++i) {
    const bf16* next_rows = row_of(next_position);  // two steps ahead of their use
    next_position = position_of(i + 1 + kStages);
    const int first = begin + (i * kAttendWarps + warp) * kTile;
    if constexpr (kApart) {
      uint32_t weights[2] = {0, 0};
      CopyWait<1>();
      __syncwarp();
      if (first < end) state.AddKeys(ring, end - first, p.scale, weights);
      __syncwarp();
      fetch_part.template operator()<kHalf>(i + 1, next_rows, 0);
      CopyWait<1>();
      __syncwarp();
      if (first < end) state.AddValues(ring, weights);
      __syncwarp();
      fetch_part.template operator()<kHalf>(i + 1, next_rows, kHalf);
      continue;
    }
    CopyWait<kStages - 1>();
    __syncwarp();
    if (first < end) {
      state.Add(ring + static_cast<uint32_t>(i % kStages * Warp::kTileBytes), end - first, p.scale);
    }
    __syncwarp();
    fetch(i + kStages, next_rows);
  }
  CopyWait<0>();
  state.SumWeights();
  __syncthreads();

  auto& joined = *reinterpret_cast<Joined<D>*>(shared);
  joined.Leave(state);
  __syncthreads();
  const int64_t tile_of = pair * head_tiles + head_tile;
  const int64_t part = (tile_of * max_splits + split) * kColumns;
  const int share = Meeting::Share(heads, D);  // kRanks > 1
#pragma unroll
  for (int k = 0; k < kColumns * D / (32 * kAttendWarps); ++k) {
    const int i = k * 32 * kAttendWarps + static_cast<int>(threadIdx.x), h = i / D, d = i % D;
    if (h >= heads) break;
    const float top = LargestOf<kAttendWarps>([&](int w) { return joined.largest[w][h]; });
    float sum = 0, weight = 0;
#pragma unroll
    for (int w = 0; w < kAttendWarps; ++w) {
      const float factor = Exp2(joined.largest[w][h] - top);
      sum = fmaf(joined.out[w][h][d], factor, sum);
      weight = fmaf(joined.weight[w][h], factor, weight);
    }
    if constexpr (kRanks > 1) {
      const int to = i / share;
      Send(ClusterAddress<kRanks>(meeting.values() + split * share + i % share, to),
           __float_as_uint(sum),
           ClusterAddress<kRanks>(&meeting.there, to));
      if (d < kRanks) {
        const auto low = __float_as_uint(top), high = __float_as_uint(weight);
        Send(ClusterAddress<kRanks>(&meeting.scale[split][h], d),
             static_cast<unsigned long long>(high) << 32 | low,
             ClusterAddress<kRanks>(&meeting.there, d));
      }
    } else if (splits == 1) {
      out[i] = Narrow(count == 0 ? 0.0f : sum / weight);
    } else {
      p.part_out[part * D + i] = sum;
      if (d == 0) {
        p.part_largest[part + h] = top;
        p.part_weight[part + h] = weight;
      }
    }
  }
  if constexpr (kRanks > 1) {
    FinishShare<D, kRanks>(meeting, split, heads, count, out);
    return;
  }
  if (splits == 1) return;

  // The last split to arrive joins them all.
  __syncthreads();
  if (threadIdx.x == 0) place = ArriveAndCount(&p.arrived[tile_of]);
  __syncthreads();
  if (place != static_cast<uint32_t>(splits - 1)) return;
  JoinSplits<D>(p, tile_of * max_splits * kColumns, splits, heads, out);
  if (threadIdx.x == 0) p.arrived[tile_of] = 0;
}

// Any head dim, one warp a head: what the fast kernel does not cover.
template <bool kSelected>
__global__ void __launch_bounds__(32) AttendAnyKernel(const AttendParams p, int dim) {
  auto* sum = DynamicShared<float>();  // [D]
  const int64_t s = blockIdx.y;
  const int h = static_cast<int>(blockIdx.x), g = h / p.heads;
  GridWait();
  GridTrigger();
  const DecodeRow& row = p.rows[s];
  const int64_t pair = s * p.groups + g, head = s * p.groups * p.heads + h;
  const int32_t* tokens = kSelected ? p.tokens + pair * p.max_tokens : nullptr;
  AttendPlainly(
      p.q + head * dim,
      p.kv,
      p.slots + row.lane * p.table_width,
      p.groups,
      g,
      dim,
      kSelected ? p.token_count[pair] : row.length,
      [&](int i) { return kSelected ? tokens[i] : i; },
      p.scale,
      sum,
      p.out + head * dim);
}

// Launches over S rows. `split_tokens`: see AttendParams; kStages: tiles in flight per warp.
// kRanks: splits of a cluster, 1 = as many as the machine is wide, joined through memory.
template <int kStages, bool kSelected, int kRanks>
void LaunchAttend(CudaOps::State& state, AttendParams p, int64_t rows, int dim) {
  const int head_tiles = (p.heads + kColumns - 1) / kColumns;
  const int splits = kRanks > 1 ? kRanks : state.MaxSplits(p.groups);
  p.part_out = state.split.out.data;
  p.part_largest = state.split.largest.data;
  p.part_weight = state.split.weight.data;
  p.arrived = state.split.arrived.data;
  assert(kRanks > 1 || dim % 64 != 0 ||
         rows * p.groups * head_tiles * splits * kColumns * dim <= state.split.out.size());
  if (dim != 64 && dim != 128) {
    Launch(state,
           AttendAnyKernel<kSelected>,
           dim3(static_cast<unsigned>(p.groups * p.heads), static_cast<unsigned>(rows)),
           32,
           static_cast<size_t>(dim) * sizeof(float),
           p,
           dim);
    return;
  }
  const dim3 grid(static_cast<unsigned>(splits),
                  static_cast<unsigned>(p.groups * head_tiles),
                  static_cast<unsigned>(rows));
  const auto launch = [&]<int D>() {
    constexpr size_t kRing = kAttendWarps * kStages * WarpAttend<D>::kTileBytes;
    const size_t slots = kSelected ? std::min<size_t>(p.table_width, kSlotsInShared) : 0;
    const size_t meeting = kRanks > 1 ? Meeting::Bytes(std::min(kColumns, p.heads), D) : 0;
    const size_t shared = std::max(kRing, sizeof(Joined<D>)) + meeting + sizeof(int32_t) * slots;
    const auto kernel = AttendKernel<D, kStages, kSelected, kRanks>;
    LaunchClusters(state, kRanks, kernel, grid, 32 * kAttendWarps, shared, p);
  };
  dim == 64 ? launch.template operator()<64>() : launch.template operator()<128>();
}

}  // namespace asynctls
