// SPDX-License-Identifier: Apache-2.0
// Causal attention of prompt chunks. A block takes 128 neighbouring rows of one head and walks the
// lane's blocks of 64 positions from the first on, so that a row sees the same tiles in the same
// order wherever its prompt was cut; tiles behind a row's position add nothing to it, bit for bit.
#include "kernels/cuda/attend_plainly.cuh"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"
#include "kernels/ref/exact.h"

namespace asynctls {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;
constexpr int kStages = 3;

// Two values of row `row` of q, or zeros.
__device__ uint32_t QueryPair(const bf16* q, int64_t stride, int row, int rows, int d) {
  return row < rows ? *reinterpret_cast<const uint32_t*>(q + row * stride + d) : 0;
}

template <int D>
__global__ void __launch_bounds__(kThreads) PrefillKernel(const PrefillParams p) {
  constexpr int kChunks = D / 4;  // 16-byte pieces of [K | V]
  constexpr int kTileBytes = kBlockPositions * 4 * D;
  auto* shared = DynamicShared<uint8_t>();
  GridWait();
  GridTrigger();
  // Later tiles are longer: they go first.
  PrefillSegment segment;
  int first;
  const int tile = static_cast<int>(gridDim.y - 1 - blockIdx.y);
  if (!FindPrefillTile(p, tile, kRows, &segment, &first)) return;
  const int head = static_cast<int>(blockIdx.x), g = head / p.heads, heads = p.groups * p.heads;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane / 4, t = lane % 4;
  const int rows = min(kRows, segment.count - first);
  const int64_t stride = int64_t{heads} * D;
  const bf16* q = p.q + (int64_t{segment.row} + first) * stride + int64_t{head} * D;
  const int position = segment.start + first;  // of the block's first row
  const int tiles = (position + rows + kBlockPositions - 1) / kBlockPositions;
  const int32_t* slots = p.slots + segment.lane * p.table_width;
  const int last = position + rows;  // nothing at or after it is read

  auto piece = [&](int stage, int line, int chunk) {
    return SharedAddress(shared) +
           static_cast<uint32_t>(stage * kTileBytes + (line * kChunks + (chunk ^ (line & 7))) * 16);
  };
  auto fetch = [&](int i) {
    if (i < tiles) {
      const bf16* block = p.kv + (int64_t{slots[i]} * p.groups + g) * kBlockPositions * 2 * D;
      for (int at = static_cast<int>(threadIdx.x); at < kBlockPositions * kChunks; at += kThreads) {
        const int line = at / kChunks, chunk = at % kChunks;
        const bool valid = i * kBlockPositions + line < last;
        CopyAsync16(piece(i % kStages, line, chunk), block + at * 8, valid);
      }
    }
    CopyCommit();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);

  const int row0 = warp * 16 + quad;  // this lane's rows: row0 and row0 + 8
  uint32_t a[D / 16][4];
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    a[i][0] = QueryPair(q, stride, row0, rows, 16 * i + 2 * t);
    a[i][1] = QueryPair(q, stride, row0 + 8, rows, 16 * i + 2 * t);
    a[i][2] = QueryPair(q, stride, row0, rows, 16 * i + 8 + 2 * t);
    a[i][3] = QueryPair(q, stride, row0 + 8, rows, 16 * i + 8 + 2 * t);
  }
  float out[D / 8][4];
#pragma unroll
  for (int i = 0; i < D / 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) out[i][j] = 0;
  }
  float largest[2] = {kNegativeInfinity, kNegativeInfinity}, weight[2] = {0, 0};
  const int warp_end = position + warp * 16 + 16;  // past the warp's last position

  for (int i = 0; i < tiles; ++i) {
    CopyWait<kStages - 2>();
    __syncthreads();
    fetch(i + kStages - 1);
    if (i * kBlockPositions >= warp_end) continue;
    float s[8][4];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) s[n][j] = 0;
    }
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t b[4];
        LoadMatrix4(b, piece(i % kStages, n * 16 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
        MultiplyAdd(s[2 * n], a[k], b[0], b[1]);
        MultiplyAdd(s[2 * n + 1], a[k], b[2], b[3]);
      }
    }
    const bool border = (i + 1) * kBlockPositions > position + warp * 16;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[n][j] *= p.scale;
        if (border && i * kBlockPositions + 8 * n + 2 * t + j % 2 > position + row0 + j / 2 * 8) {
          s[n][j] = kNegativeInfinity;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = largest[r];
#pragma unroll
      for (int n = 0; n < 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      const float shift = top == kNegativeInfinity ? 0 : top;
      const float shrink = Exp2(largest[r] - shift);
      largest[r] = top;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        s[n][2 * r] = Exp2(s[n][2 * r] - shift);
        s[n][2 * r + 1] = Exp2(s[n][2 * r + 1] - shift);
        sum += s[n][2 * r] + s[n][2 * r + 1];
      }
      weight[r] = fmaf(weight[r], shrink, sum);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        out[n][2 * r] *= shrink;
        out[n][2 * r + 1] *= shrink;
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint32_t w[4] = {NarrowPair(s[2 * k][0], s[2 * k][1]),
                             NarrowPair(s[2 * k][2], s[2 * k][3]),
                             NarrowPair(s[2 * k + 1][0], s[2 * k + 1][1]),
                             NarrowPair(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t b[4];
        LoadMatrix4Transposed(b, piece(i % kStages, k * 16 + lane % 16, D / 8 + 2 * n + lane / 16));
        MultiplyAdd(out[2 * n], w, b[0], b[1]);
        MultiplyAdd(out[2 * n + 1], w, b[2], b[3]);
      }
    }
  }
  CopyWait<0>();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float total = weight[r];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    const int row = row0 + 8 * r;
    if (row >= rows) continue;
    const float inverse = 1.0f / total;
    bf16* to = p.out + (int64_t{segment.row} + first + row) * stride + int64_t{head} * D;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      *reinterpret_cast<uint32_t*>(to + 8 * n + 2 * t) =
          NarrowPair(out[n][2 * r] * inverse, out[n][2 * r + 1] * inverse);
    }
  }
}

// Any head dim, one warp a row and head.
__global__ void __launch_bounds__(32) PrefillAnyKernel(const PrefillParams p, int dim) {
  auto* sum = DynamicShared<float>();  // [D]
  GridWait();
  GridTrigger();
  PrefillSegment segment;
  int first;
  if (!FindPrefillTile(p, static_cast<int>(blockIdx.y), 1, &segment, &first)) return;
  const int head = static_cast<int>(blockIdx.x), g = head / p.heads;
  const int64_t row = (int64_t{segment.row} + first) * p.groups * p.heads + head;
  AttendPlainly(
      p.q + row * dim,
      p.kv,
      p.slots + segment.lane * p.table_width,
      p.groups,
      g,
      dim,
      segment.start + first + 1,
      [](int i) { return i; },
      p.scale,
      sum,
      p.out + row * dim);
}

}  // namespace

void CudaOps::PrefillAttend(const PrefillAttendArgs& a) {
  if (a.q.empty() || a.segments.empty()) return;
  const auto groups = static_cast<int>(a.kv.rows.dim(1));
  const auto heads = static_cast<unsigned>(a.q.dim(1));
  const int64_t rows = a.q.dim(0), segments = a.segments.dim(0), dim = a.q.dim(2);
  const PrefillParams p{.q = a.q.data,
                        .kv = a.kv.rows.data,
                        .slots = a.kv.slot_table.data,
                        .segments = a.segments.data,
                        .out = a.out.data,
                        .table_width = a.kv.slot_table.dim(1),
                        .segment_count = static_cast<int>(segments),
                        .groups = groups,
                        .heads = static_cast<int>(heads) / groups,
                        .scale = a.scale * kLog2E};
  if (dim == 128 && state_->major == 9) {
    return LaunchPrefillHopper(*state_, p, a.kv.rows, rows);
  }
  if (dim != 64 && dim != 128) {
    Launch(*state_,
           PrefillAnyKernel,
           dim3(heads, static_cast<unsigned>(rows)),
           32,
           static_cast<size_t>(dim) * sizeof(float),
           p,
           static_cast<int>(dim));
    return;
  }
  const auto kernel = dim == 64 ? PrefillKernel<64> : PrefillKernel<128>;
  const size_t shared = static_cast<size_t>(kStages * kBlockPositions * 4 * dim);
  const dim3 grid(heads, static_cast<unsigned>(rows / kRows + segments));
  Launch(*state_, kernel, grid, kThreads, shared, p);
}

}  // namespace asynctls
