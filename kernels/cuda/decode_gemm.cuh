// SPDX-License-Identifier: Apache-2.0
// Products of few rows, bound by reading the weights: out^T = W x^T, W's rows as the rows of the
// matrix product, x's as its columns.
//
// A thread block makes one to four groups of 16 output features: few, so that a product has blocks
// to spare for multiprocessors that are done early, but enough that x is read seldom. Its warps
// share K in pieces of 64, each keeping its own sums, joined in the order of the warps. Weights
// come through a ring of the warp's own (no barrier of the block) in whole lines of 128 bytes, four
// rows at a time, and leave it as fragments: which k the registers stand for does not matter as
// long as x is read alike. The ring is filled while the op before is still running, so that the
// memory has up to 25 MB to fetch while the small ops between two products run; a slot at a time,
// or whatever the ops in between read would queue behind it.
//
// An element's sum has the same order in every variant. What comes before (the norm) and after (the
// gate, the residual) has the bits of the ops of that name.
#pragma once

#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/shared_rows.cuh"

namespace asynctls {

constexpr int kFeatures = 16;  // of a group
constexpr int kGemmWarps = 8, kGemmThreads = 32 * kGemmWarps;
constexpr int kSlotBytes = kFeatures * kPiece * 2;  // a piece of a group

// Where the sums go.
enum class Finish {
  kStore,  // out = them
  kAdd,    // out += them
  kGate,   // out = silu(first half) times second half
};

// Groups of W that make one group of the result, and how many features so many groups make.
constexpr int GroupsTogether(Finish finish) { return finish == Finish::kGate ? 2 : 1; }
constexpr int FeaturesMade(Finish finish, int groups) {
  return kFeatures * groups / GroupsTogether(finish);
}

template <typename Out>
struct DecodeGemmParams {
  const bf16* w;     // [N, K]; kGate: [2 N, K], gates first
  const bf16* x;     // [rows, K]
  const bf16* norm;  // [K], with kNorm
  Out* out;          // [rows, N]
  int features;      // N
  int width;         // K
  int rows;
  float eps;
  int blocks_ahead;  // that fetch weights while the op before is running
};

// How x comes to the tensor cores.
enum class Reading {
  kDirect,  // to registers, in half lines
  kPieces,  // through a ring of the warp's own, as the weights
  kWhole,   // all of it to shared memory first
  kNormed,  // the same, normed on the way
};

// A variant of the kernel: groups of a block; tiles of 8 rows; pieces of weights, and of x where it
// comes in pieces, that are on the way per warp.
template <int kGroupsOf, int kTilesOf, int kStagesOf, Reading kReadingOf, int kXPiecesOf = 0>
struct DecodeGemmShape {
  static constexpr int kGroups = kGroupsOf, kTiles = kTilesOf, kStages = kStagesOf;
  static constexpr Reading kReading = kReadingOf;
  static constexpr bool kWhole = kReading == Reading::kWhole || kReading == Reading::kNormed;
  static constexpr int kXPieces = kXPiecesOf, kXBytes = 8 * kTiles * kPiece * 2;  // of one
  static_assert((kReading == Reading::kPieces) == (kXPieces > 0));
  static_assert(!kWhole || kTiles == 1);
  // The copy of a piece of x belongs to the group of a copy of weights that is waited for in time.
  static_assert(kXPieces == 0 || kStages <= kXPieces * kGroups);
  // Shared memory: the ring, later the warps' sums; x.
  static constexpr int kRing = kGemmWarps * kStages * kSlotBytes;
  static constexpr int kSums = kGemmThreads * kGroups * kTiles * 4 * 4;
  static constexpr int kWeightBytes = kRing > kSums ? kRing : kSums;
  static int Bytes(int rows, int width) {
    return kWeightBytes + (kWhole ? rows * RowStride(width) * 2 : kGemmWarps * kXPieces * kXBytes);
  }
  // Blocks that a multiprocessor is to hold.
  static constexpr int kResident = kTiles > 2 ? 1 : kStages <= 4 ? 3 : 2;
};

// Where in a slot the 16 bytes number `chunk` of row `row` are: so that the rows of a fragment lie
// in different banks.
__device__ inline int PlaceInSlot(int row, int chunk) {
  return row * kPiece * 2 + (chunk ^ (row & 1) << 2) * 16;
}

// Whether a product of so many rows can norm them itself: they have to fit beside the largest ring.
inline bool NormsItself(int64_t rows, int64_t width, int shared_bytes) {
  using Largest = DecodeGemmShape<2, 1, 6, Reading::kNormed>;
  constexpr int kRest = 1024;
  return rows <= kMostNormedRows && width <= kMostNormWidth &&
         Largest::Bytes(static_cast<int>(rows), static_cast<int>(width)) + kRest <= shared_bytes;
}

// Joins the warps' sums, in the order of the warps, and finishes the block's elements. `parts`
// [warps][groups][tiles][32][4] is shared memory that no thread uses when all have got here.
template <int kGroups, int kTiles, Finish kFinish, typename Out>
__device__ inline void JoinSums(const DecodeGemmParams<Out>& p,
                                const float (&sum)[kGroups][kTiles][4],
                                int block_feature,
                                float* parts) {
  constexpr int kTogether = GroupsTogether(kFinish);
  constexpr int kMade = FeaturesMade(kFinish, kGroups);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  // Element e: feature and row of a group (or of a gate and its factor) and tile; where the product
  // left it: lane, register.
  constexpr int kElements = kMade * kTiles * 8;
  constexpr int kTurns = (kElements + kGemmThreads - 1) / kGemmThreads;
  auto place = [&](int e, int& row, int& feature) {
    row = e / (kMade * 8) * 8 + e / kMade % 8;
    feature = block_feature + e % kMade;
    return row < p.rows && feature < p.features;
  };
  float old[kTurns];
  if constexpr (kFinish == Finish::kAdd) {
#pragma unroll
    for (int n = 0; n < kTurns; ++n) {
      int row, feature;
      const bool ours = place(static_cast<int>(threadIdx.x) + n * kGemmThreads, row, feature);
      old[n] = ours ? Widen(p.out[int64_t{row} * p.features + feature]) : 0;
    }
  }
  __syncthreads();
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      *reinterpret_cast<float4*>(parts + (((warp * kGroups + g) * kTiles + j) * 32 + lane) * 4) =
          make_float4(sum[g][j][0], sum[g][j][1], sum[g][j][2], sum[g][j][3]);
    }
  }
  __syncthreads();
  auto total = [&](int e, int g) {
    const int f = e % kFeatures, row = e / kMade % 8, j = e / (kMade * 8);
    const int at = f % 8 * 4 + row / 2, reg = row % 2 + f / 8 * 2;
    float all = 0;
#pragma unroll
    for (int i = 0; i < kGemmWarps; ++i) {
      all += parts[(((i * kGroups + g) * kTiles + j) * 32 + at) * 4 + reg];
    }
    return all;
  };
#pragma unroll
  for (int n = 0; n < kTurns; ++n) {
    const int e = static_cast<int>(threadIdx.x) + n * kGemmThreads;
    int row, feature;
    if (!place(e, row, feature)) continue;
    const int g = e % kMade / kFeatures * kTogether;
    Out& to = p.out[int64_t{row} * p.features + feature];
    if constexpr (sizeof(Out) == sizeof(float)) {
      to = total(e, g);
    } else if constexpr (kFinish == Finish::kStore) {
      to = Narrow(total(e, g));
    } else if constexpr (kFinish == Finish::kAdd) {
      to = Narrow(old[n] + Widen(Narrow(total(e, g))));
    } else {
      to = Narrow(Gated(Widen(Narrow(total(e, g))), Widen(Narrow(total(e, g + 1)))));
    }
  }
}

template <typename Shape, Finish kFinish, typename Out>
__global__ void __launch_bounds__(kGemmThreads, Shape::kResident)
    DecodeGemmKernel(const DecodeGemmParams<Out> p) {
  constexpr int kGroups = Shape::kGroups, kTiles = Shape::kTiles, kStages = Shape::kStages;
  constexpr int kXPieces = Shape::kXPieces;
  constexpr Reading kReading = Shape::kReading;
  static_assert(kFinish != Finish::kGate || kGroups % 2 == 0);
  static_assert(kGemmThreads == kNormThreads);
  auto* shared = DynamicShared<uint8_t>();
  GridTrigger();  // the ops that follow wait for the end of this one anyway
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane / 4, t = lane % 4;

  // The first feature of group g. With gates, every second group is the one of a gate's factors.
  constexpr int kTogether = GroupsTogether(kFinish);
  const int block_feature = static_cast<int>(blockIdx.x) * FeaturesMade(kFinish, kGroups);
  auto feature_of = [&](int g) { return block_feature + g / kTogether * kFeatures; };

  const int first_k = warp * kPiece;
  const uint64_t once = EvictFirst();
  const uint32_t ring =
      SharedAddress(shared) +
      static_cast<uint32_t>(warp * kStages * kSlotBytes + PlaceInSlot(lane / 8, lane % 8));
  // The next piece to be fetched: of group `fetch_group`, at `fetch_k`.
  int fetch_group = 0, fetch_k = first_k, fetch_slot = 0;
  auto fetch = [&] {
    if (fetch_k < p.width) {
      const int feature = feature_of(fetch_group), last = p.features - 1;
      const bf16* from = p.w + fetch_k + lane % 8 * 8;
      if (kTogether == 2 && fetch_group % 2 == 1) from += int64_t{p.features} * p.width;
      const uint32_t to = ring + static_cast<uint32_t>(fetch_slot * kSlotBytes);
      fetch_slot = fetch_slot + 1 == kStages ? 0 : fetch_slot + 1;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = min(feature + lane / 8 + 4 * i, last);
        CopyAsync16(to + 4 * i * kPiece * 2, from + int64_t{row} * p.width, once);
      }
      if (++fetch_group == kGroups) {
        fetch_group = 0;
        fetch_k += kGemmWarps * kPiece;
      }
    }
    CopyCommit();
  };
  // The weights are nobody's output, so the ring is filled while the op before is running: one slot
  // after the other, lest what others need at once queues behind them. The first warp, which takes
  // all slots at once, is the one to notice the end of the op before.
  __shared__ unsigned ended;
  int filled = 0;
  if (static_cast<int>(blockIdx.x) < p.blocks_ahead) {
    if (threadIdx.x == 0) ended = 0;
    __syncthreads();
    auto has_ended = [&] {
      return __shfl_sync(kAllLanes, lane == 0 ? atomicAdd(&ended, 0u) : 0u, 0) != 0;
    };
    if (warp == 0) {
      for (; filled < kStages; ++filled) fetch();
      GridWait();
      if (lane == 0) atomicAdd(&ended, 1u);
    }
    while (filled < kStages && !has_ended()) {
      fetch();
      ++filled;
      CopyWait<0>();
    }
  }

  const bf16* x = p.x;
  int stride = p.width;
  // x for a piece: [half][tile], row tile * 8 + quad. Read so many pieces before it is needed, or
  // copied to the warp's own memory as the weights are, as part of the next copy's group.
  constexpr int kAhead = kReading != Reading::kDirect || kTiles > 4 ? 0
                         : kTiles > 2                               ? 1
                         : kTiles == 2 || kStages <= 4              ? 2
                                                                    : 4;
  constexpr int kTurn = kGemmWarps * kPiece;
  using Piece = uint4[2][kTiles];
  auto read_x = [&](int k, Piece& b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const int row = j * 8 + quad, at = k + 32 * half + t * 8;
        b[half][j] = make_uint4(0, 0, 0, 0);
        if (row < p.rows) {
          b[half][j] = *reinterpret_cast<const uint4*>(x + int64_t{row} * stride + at);
        }
      }
    }
  };
  uint8_t* x_pieces = shared + Shape::kWeightBytes + warp * kXPieces * Shape::kXBytes;
  auto copy_x = [&](int k, int piece) {
    if (k >= p.width) return;
    const uint32_t to = SharedAddress(x_pieces) + static_cast<uint32_t>(piece * Shape::kXBytes) +
                        static_cast<uint32_t>(PlaceInSlot(lane / 8, lane % 8));
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const int row = lane / 8 + 4 * i;
      const bool there = row < p.rows;
      CopyAsync16(to + 4 * i * kPiece * 2,
                  p.x + int64_t{there ? row : 0} * p.width + k + lane % 8 * 8,
                  there);
    }
  };
  // x, and behind it the rest of the ring: a group for each slot, empty if it is there already.
  RowsToNorm norm;
  if constexpr (kReading == Reading::kNormed) norm.AskWeight(p.norm, p.width);
  GridWait();
  auto* rows = reinterpret_cast<bf16*>(shared + Shape::kWeightBytes);
  Piece next[kAhead > 0 ? kAhead : 1];
  if constexpr (kReading == Reading::kDirect) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first_k + i * kTurn < p.width) read_x(first_k + i * kTurn, next[i]);
    }
  } else if constexpr (kReading == Reading::kPieces) {
    for (int i = 0; i < kXPieces; ++i) copy_x(first_k + i * kTurn, i);
  } else if constexpr (kReading == Reading::kWhole) {
    CopyRows(p.x, p.rows, p.width, rows);
  } else {
    norm.AskRows(p.x, p.rows, p.width);
  }
  CopyCommit();
#pragma unroll 1
  for (int i = 0; i < kStages; ++i) {
    if (i < filled) {
      CopyCommit();
    } else {
      fetch();
    }
  }
  if constexpr (kReading == Reading::kWhole) {
    CopyWait<kStages>();
    __syncthreads();
  } else if constexpr (kReading == Reading::kNormed) {
    norm.Finish(p.rows, p.width, p.eps, rows);
  }
  if constexpr (Shape::kWhole) {
    x = rows;
    stride = RowStride(p.width);
  }

  float sum[kGroups][kTiles][4];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[g][j][i] = 0;
    }
  }
  const uint8_t* slots = shared + warp * kStages * kSlotBytes;
  const int low = PlaceInSlot(quad, t), high = PlaceInSlot(quad, t + 4);
  int slot = 0;
  auto multiply = [&](const Piece& b) {  // by the next piece of every group
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      CopyWait<kStages - 1>();
      __syncwarp();
      const uint8_t* from = slots + slot * kSlotBytes;
      uint4 a[4];  // [half][row quad, quad + 8]
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] =
            *reinterpret_cast<const uint4*>(from + (i < 2 ? low : high) + i % 2 * 8 * kPiece * 2);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 &l = a[2 * half], &h = a[2 * half + 1];
        const uint32_t first[4] = {l.x, h.x, l.y, h.y}, second[4] = {l.z, h.z, l.w, h.w};
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          MultiplyAdd(sum[g][j], first, b[half][j].x, b[half][j].y);
          MultiplyAdd(sum[g][j], second, b[half][j].z, b[half][j].w);
        }
      }
      __syncwarp();
      fetch();
      slot = slot + 1 == kStages ? 0 : slot + 1;
    }
  };
  if constexpr (kXPieces > 0) {
    int piece = 0;
#pragma unroll 1
    for (int k = first_k; k < p.width; k += kTurn) {
      CopyWait<kStages - 1>();
      __syncwarp();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          next[0][half][j] = *reinterpret_cast<const uint4*>(
              x_pieces + piece * Shape::kXBytes + j * 8 * kPiece * 2 + (half == 0 ? low : high));
        }
      }
      __syncwarp();
      copy_x(k + kXPieces * kTurn, piece);
      piece = piece + 1 == kXPieces ? 0 : piece + 1;
      multiply(next[0]);
    }
  } else if constexpr (kAhead == 0) {
#pragma unroll 1
    for (int k = first_k; k < p.width; k += kTurn) {
      read_x(k, next[0]);
      multiply(next[0]);
    }
  } else {
#pragma unroll 1
    for (int base = first_k; base < p.width; base += kAhead * kTurn) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int k = base + i * kTurn, later = k + kAhead * kTurn;
        if (k >= p.width) break;
        Piece b;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int j = 0; j < kTiles; ++j) b[half][j] = next[i][half][j];
        }
        if (later < p.width) read_x(later, next[i]);
        multiply(b);
      }
    }
  }
  CopyWait<0>();
  JoinSums<kGroups, kTiles, kFinish>(
      p, sum, block_feature, reinterpret_cast<float*>(shared));  // the ring is empty
}

}  // namespace asynctls
