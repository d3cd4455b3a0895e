// SPDX-License-Identifier: Apache-2.0
// Products of few rows, bound by reading the weights: out^T = W x^T, W's rows as the rows of the
// matrix product, x's as its columns.
//
// A thread block makes one to four groups of 16 output features: few, so that a product has blocks
// to spare for multiprocessors that are done early, but enough that x is read seldom. Its warps
// share K in pieces of 64, each keeping its own sums, joined in the order of the warps. Weights
// come through a ring of the warp's own (no barrier of the block) in whole lines of 128 bytes, four
// rows at a time, and leave it as fragments: which k the registers stand for does not matter as
// long as x is read alike. The ring is filled before the wait for the op before, so that with two
// blocks a multiprocessor the memory has 25 MB to fetch while the small ops between two products
// run.
//
// An element's sum has the same order in every variant. What comes before (the norm) and after (the
// gate, the residual) has the bits of the ops of that name.
#pragma once

#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/row_math.cuh"

namespace asynctls {

constexpr int kFeatures = 16;  // of a group
constexpr int kPiece = 64;     // of K, per warp and turn
constexpr int kGemmWarps = 8, kGemmThreads = 32 * kGemmWarps;
constexpr int kSlotBytes = kFeatures * kPiece * 2;  // a piece of a group

constexpr int kMostNormedRows = 2;  // that a product norms itself

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
};

// The normed rows lie so far apart in shared memory that two of them do not meet in a bank.
__device__ __host__ constexpr int NormedStride(int width) { return width + kPiece / 2; }

// A variant of the kernel: groups of a block; tiles of 8 rows; pieces of weights, and of x, that
// are on the way per warp. kXPieces 0: x goes straight to registers, which reads it in half lines.
template <int kGroupsOf, int kTilesOf, int kStagesOf, int kXPiecesOf>
struct DecodeGemmShape {
  static constexpr int kGroups = kGroupsOf, kTiles = kTilesOf, kStages = kStagesOf;
  static constexpr int kXPieces = kXPiecesOf, kXBytes = 8 * kTiles * kPiece * 2;  // of one
  // The copy of a piece of x belongs to the group of a copy of weights that is waited for in time.
  static_assert(kXPieces == 0 || kStages <= kXPieces * kGroups);
  // Shared memory: the ring, later the warps' sums; x. Normed rows lie behind.
  static constexpr int kRing = kGemmWarps * kStages * kSlotBytes;
  static constexpr int kSums = kGemmThreads * kGroups * kTiles * 4 * 4;
  static constexpr int kWeightBytes = kRing > kSums ? kRing : kSums;
  static constexpr int kBytes = kWeightBytes + kGemmWarps * kXPieces * kXBytes;
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
  constexpr int kRing = DecodeGemmShape<2, 1, 6, 0>::kBytes, kRest = 1024;
  return rows <= kMostNormedRows && width <= kMostNormWidth &&
         kRing + rows * NormedStride(static_cast<int>(width)) * 2 + kRest <= shared_bytes;
}

// Norms the rows of x, at most kMostNormedRows, to shared memory, by all threads. Waits for the op
// before. Requires: p.width <= kMostNormWidth.
template <typename Out>
__device__ inline void NormRows(const DecodeGemmParams<Out>& p, bf16* out) {
  static_assert(kGemmThreads == kNormThreads);
  __shared__ float squares[kMostNormedRows][kGemmWarps];
  const int pieces = p.width / 8;
  uint4 scale[kNormHeld], held[kMostNormedRows][kNormHeld];
  auto each = [&](auto body) {
#pragma unroll
    for (int k = 0; k < kNormHeld; ++k) {
      const int i = static_cast<int>(threadIdx.x) + k * kNormThreads;
      if (i < pieces) body(k, i);
    }
  };
  each([&](int k, int i) { scale[k] = reinterpret_cast<const uint4*>(p.norm)[i]; });
  GridWait();
#pragma unroll
  for (int row = 0; row < kMostNormedRows; ++row) {
    if (row >= p.rows) break;
    const auto* from = reinterpret_cast<const uint4*>(p.x + int64_t{row} * p.width);
    each([&](int k, int i) { held[row][k] = from[i]; });
  }
#pragma unroll
  for (int row = 0; row < kMostNormedRows; ++row) {
    if (row >= p.rows) break;
    float sum = 0;
    each([&](int k, int) { sum = AddSquares(held[row][k], sum); });
    sum = WarpSum(sum);
    if (threadIdx.x % 32 == 0) squares[row][threadIdx.x / 32] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int row = 0; row < kMostNormedRows; ++row) {
    if (row >= p.rows) break;
    const float inverse = InverseNorm(squares[row], p.width, p.eps);
    auto* to = reinterpret_cast<uint4*>(out + row * NormedStride(p.width));
    each([&](int k, int i) { to[i] = Normed(held[row][k], inverse, scale[k]); });
  }
  __syncthreads();
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

template <typename Shape, bool kNorm, Finish kFinish, typename Out>
__global__ void __launch_bounds__(kGemmThreads, Shape::kResident)
    DecodeGemmKernel(const DecodeGemmParams<Out> p) {
  constexpr int kGroups = Shape::kGroups, kTiles = Shape::kTiles, kStages = Shape::kStages;
  constexpr int kXPieces = Shape::kXPieces;
  static_assert(kFinish != Finish::kGate || kGroups % 2 == 0);
  static_assert(!kNorm || (kTiles == 1 && kXPieces == 0));
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
  int fetch_group = 0, fetch_k = first_k;
  auto fetch = [&](int slot) {
    if (fetch_k < p.width) {
      const int feature = feature_of(fetch_group), last = p.features - 1;
      const bf16* from = p.w + fetch_k + lane % 8 * 8;
      if (kTogether == 2 && fetch_group % 2 == 1) from += int64_t{p.features} * p.width;
      const uint32_t to = ring + static_cast<uint32_t>(slot * kSlotBytes);
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
#pragma unroll 1
  for (int i = 0; i < kStages; ++i) fetch(i);
  // The weights above are nobody's output; what follows is.
  const bf16* x = p.x;
  int stride = p.width;
  if constexpr (kNorm) {
    auto* normed = reinterpret_cast<bf16*>(shared + Shape::kBytes);
    NormRows(p, normed);
    x = normed;
    stride = NormedStride(p.width);
  } else {
    GridWait();
  }

  // x for a piece: [half][tile], row tile * 8 + quad. Read so many pieces before it is needed, or
  // copied to the warp's own memory as the weights are, as part of the next copy's group.
  constexpr int kAhead = kNorm || kXPieces > 0 || kTiles > 4 ? 0
                         : kTiles > 2                        ? 1
                         : kTiles == 2 || kStages <= 4       ? 2
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
  if constexpr (kXPieces > 0) {
    for (int i = 0; i < kXPieces; ++i) copy_x(first_k + i * kTurn, i);
    CopyCommit();
    CopyWait<0>();
  }
  Piece next[kAhead > 0 ? kAhead : 1];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (first_k + i * kTurn < p.width) read_x(first_k + i * kTurn, next[i]);
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
      fetch(slot);
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
