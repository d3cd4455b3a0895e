// SPDX-License-Identifier: Apache-2.0
// Causal attention of prompt chunks on Hopper's matrix units, head dim 128. A block takes 128
// neighbouring rows of one head: one warp brings tiles of 128 positions from the lane's slots by
// tensor copies, two groups of four warps have 64 rows each. A group multiplies the next tile of
// keys while it still adds up the values of the last one, and works on the softmax in between; the
// other group fills the gaps. Tiles are walked from the first position on, as in prefill_attend.cu.
#include <algorithm>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

constexpr int kDim = 128;
constexpr int kRows = 128;       // of a block
constexpr int kPositions = 128;  // of a tile
constexpr int kStages = 2;
constexpr int kHalfTile = kPositions * 64;  // values of 64 dimensions of a tile
constexpr int kThreads = 3 * 128;

struct __align__(1024) Shared {
  bf16 q[2][kRows * 64];  // [dimensions / 64][row][64], swizzled like the tiles
  bf16 k[kStages][2][kHalfTile];
  bf16 v[kStages][2][kHalfTile];
  uint64_t full_k[kStages], full_v[kStages], empty_k[kStages], empty_v[kStages];
};

// Where value (row, column) of a 128-byte-row matrix lies, in 16-byte pieces.
__device__ int Swizzled(int row, int piece) { return row * 8 + (piece ^ (row & 7)); }

struct Block {
  PrefillSegment segment;
  int first, rows, position, last, tiles;
};

__device__ void Produce(
    const PrefillParams& p, const CUtensorMap& map, const Block& b, int g, Shared& sh) {
  const int32_t* slots = p.slots + b.segment.lane * p.table_width;
  for (int i = 0; i < b.tiles; ++i) {
    const int stage = i % kStages;
    const uint32_t parity = (i / kStages & 1) ^ 1;
    const int first = i * (kPositions / kBlockPositions);
    const int blocks = min(kPositions / kBlockPositions,
                           (b.last - i * kPositions + kBlockPositions - 1) / kBlockPositions);
    int row[kPositions / kBlockPositions];
    for (int j = 0; j < kPositions / kBlockPositions; ++j) {
      row[j] = j < blocks ? (slots[first + j] * p.groups + g) * kBlockPositions : 0;
    }
    const auto bytes = static_cast<uint32_t>(blocks * kBlockPositions * kDim * 2);
    for (int kind = 0; kind < 2; ++kind) {  // keys, values
      uint64_t* full = kind == 0 ? &sh.full_k[stage] : &sh.full_v[stage];
      BarrierWait(kind == 0 ? &sh.empty_k[stage] : &sh.empty_v[stage], parity);
      BarrierExpect(full, bytes);
      for (int half = 0; half < 2; ++half) {
        bf16* to = kind == 0 ? sh.k[stage][half] : sh.v[stage][half];
        for (int j = 0; j < blocks; ++j) {
          CopyTensor(to + j * kBlockPositions * 64, &map, kind * kDim + half * 64, row[j], full);
        }
      }
    }
  }
}

// The group's running softmax: rows quad and quad + 8 of the warp's sixteen.
struct Softmax {
  float largest[2] = {kNegativeInfinity, kNegativeInfinity};
  float weight[2] = {0, 0};

  // Scores to weights; `shrink`: what is there already is to be multiplied with.
  __device__ void Weigh(float (&s)[64], float scale, float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = kNegativeInfinity;
#pragma unroll
      for (int n = 0; n < 16; ++n) top = fmaxf(top, fmaxf(s[4 * n + 2 * r], s[4 * n + 2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      top = fmaxf(largest[r], top);
      const float shift = top == kNegativeInfinity ? 0 : top * scale;
      // Exactly 1 where nothing larger has come: a tile that a row may not see must not change it,
      // and largest * scale - shift is not 0 but what rounding the shift has cost.
      shrink[r] = largest[r] == top ? 1.0f : Exp2(fmaf(largest[r], scale, -shift));
      largest[r] = top;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 16; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& x = s[4 * n + 2 * r + j];
          x = Exp2(fmaf(x, scale, -shift));
          sum += x;
        }
      }
      weight[r] = fmaf(weight[r], shrink[r], sum);
    }
  }
};

__device__ void Pack(const float (&s)[64], uint32_t (&w)[8][4]) {
#pragma unroll
  for (int k = 0; k < 8; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j) w[k][j] = NarrowPair(s[8 * k + 2 * j], s[8 * k + 2 * j + 1]);
  }
}

__device__ void Consume(const PrefillParams& p, const Block& b, int head, int group, Shared& sh) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane / 4, t = lane % 4;
  const int row0 = group * 64 + warp * 16 + quad;  // of the block; and row0 + 8
  const int first_position = b.position + group * 64;
  // Positions of tile i that the group's last row may see decide what it has to do.
  const int tiles = min(b.tiles, (first_position + 63) / kPositions + 1);
  float s[64], out[64];
  uint32_t w[8][4];
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i] = 0;
  Softmax softmax;

  auto scores = [&](int i) {
    const int stage = i % kStages;
    BarrierWait(&sh.full_k[stage], i / kStages & 1);
    ProductFence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const bf16* q = sh.q[k / 4] + group * 64 * 64 + k % 4 * 16;
      const bf16* keys = sh.k[stage][k / 4] + k % 4 * 16;
      Product64x128(s, MatrixDescriptor(q, 16), MatrixDescriptor(keys, 16), k > 0);
    }
    ProductCommit();
  };
  auto add_values = [&](int i) {
    const int stage = i % kStages;
    BarrierWait(&sh.full_v[stage], i / kStages & 1);
    if ((i + 1) * kPositions > b.last) {  // what lies behind the chunk must not be multiplied
      const int valid = b.last - i * kPositions;
      for (int at = valid * 8 + static_cast<int>(threadIdx.x) % 128; at < kPositions * 8;
           at += 128) {
        // Both groups write the same zeros.
        reinterpret_cast<uint4*>(sh.v[stage][0])[at] = make_uint4(0, 0, 0, 0);
        reinterpret_cast<uint4*>(sh.v[stage][1])[at] = make_uint4(0, 0, 0, 0);
      }
      FenceAsync();
      asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
    }
    ProductFence();
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k) {
      const bf16* values = sh.v[stage][0] + k * 16 * 64;
      Product64x128(out, w[k], MatrixDescriptor(values, kHalfTile * sizeof(bf16)));
    }
    ProductCommit();
  };
  auto mask = [&](int i) {
    if ((i + 1) * kPositions <= first_position + 1) return;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = i * kPositions + 8 * n + 2 * t + j % 2;
        if (at > b.position + row0 + j / 2 * 8) s[4 * n + j] = kNegativeInfinity;
      }
    }
  };
  auto release = [&](uint64_t* barrier) {
    __syncwarp();
    if (lane == 0) BarrierArrive(barrier);
  };

  // The groups take turns at the matrix units: while one multiplies, the other has its softmax.
  auto wait_turn = [&] { asm volatile("bar.sync %0, 256;" ::"r"(3 + group) : "memory"); };
  auto pass_turn = [&] { asm volatile("bar.arrive %0, 256;" ::"r"(4 - group) : "memory"); };
  if (group == 1) pass_turn();

  float shrink[2];
  scores(0);
  ProductWait<0>();
  release(&sh.empty_k[0]);
  mask(0);
  softmax.Weigh(s, p.scale, shrink);
  Pack(s, w);
  for (int i = 1; i < tiles; ++i) {
    wait_turn();
    scores(i);
    add_values(i - 1);
    pass_turn();
    ProductWait<1>();
    release(&sh.empty_k[i % kStages]);
    mask(i);
    softmax.Weigh(s, p.scale, shrink);
    ProductWait<0>();
    release(&sh.empty_v[(i - 1) % kStages]);
#pragma unroll
    for (int n = 0; n < 16; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) out[4 * n + j] *= shrink[j / 2];
    }
    Pack(s, w);
  }
  add_values(tiles - 1);
  ProductWait<0>();
  release(&sh.empty_v[(tiles - 1) % kStages]);
  // Tiles that only the other group reads.
  for (int i = tiles; i < b.tiles; ++i) {
    wait_turn();
    pass_turn();
    BarrierWait(&sh.full_k[i % kStages], i / kStages & 1);
    release(&sh.empty_k[i % kStages]);
    BarrierWait(&sh.full_v[i % kStages], i / kStages & 1);
    release(&sh.empty_v[i % kStages]);
  }

  const int64_t stride = int64_t{p.groups} * p.heads * kDim;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float total = softmax.weight[r];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    const int row = row0 + 8 * r;
    if (row >= b.rows) continue;
    const float inverse = 1.0f / total;
    bf16* to = p.out + (int64_t{b.segment.row} + b.first + row) * stride + int64_t{head} * kDim;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      *reinterpret_cast<uint32_t*>(to + 8 * n + 2 * t) =
          NarrowPair(out[4 * n + 2 * r] * inverse, out[4 * n + 2 * r + 1] * inverse);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    PrefillHopperKernel(const PrefillParams p, const __grid_constant__ CUtensorMap map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  auto* shared = DynamicShared<uint8_t>();
  Shared& sh =
      *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(shared) + 1023) & ~uintptr_t{1023});
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&sh.full_k[i], 1);
      BarrierInit(&sh.full_v[i], 1);
      BarrierInit(&sh.empty_k[i], 8);  // a warp each of both groups
      BarrierInit(&sh.empty_v[i], 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  GridWait();
  GridTrigger();
  Block b;
  const int tile = static_cast<int>(gridDim.y - 1 - blockIdx.y);  // later ones are longer: first
  if (!FindPrefillTile(p, tile, kRows, &b.segment, &b.first)) return;
  const int head = static_cast<int>(blockIdx.x), g = head / p.heads;
  b.rows = min(kRows, b.segment.count - b.first);
  b.position = b.segment.start + b.first;
  b.last = b.position + b.rows;
  b.tiles = (b.last + kPositions - 1) / kPositions;

  const int64_t stride = int64_t{p.groups} * p.heads * kDim;
  const bf16* q = p.q + (int64_t{b.segment.row} + b.first) * stride + int64_t{head} * kDim;
  for (int at = static_cast<int>(threadIdx.x); at < kRows * 16; at += kThreads) {
    const int row = at / 16, piece = at % 16;
    uint4 x = make_uint4(0, 0, 0, 0);
    if (row < b.rows) x = *reinterpret_cast<const uint4*>(q + row * stride + piece * 8);
    reinterpret_cast<uint4*>(sh.q[piece / 8])[Swizzled(row, piece % 8)] = x;
  }
  FenceAsync();
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  if (group < 0) {
    GiveRegisters<24>();
    if (threadIdx.x == 0) Produce(p, map, b, g, sh);
  } else {
    TakeRegisters<240>();
    Consume(p, b, head, group, sh);
  }
#endif
}

// The pool's rows [K | V] as a matrix of 64-value boxes.
CUtensorMap DescribeKv(const View<bf16, 4>& rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    CUDA_CHECK(cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
    return reinterpret_cast<Encode>(function);
  }();
  CUtensorMap map;
  const cuuint64_t size[2] = {2 * kDim,
                              static_cast<cuuint64_t>(rows.dim(0) * rows.dim(1) * rows.dim(2))};
  const cuuint64_t stride[1] = {2 * kDim * sizeof(bf16)};
  const cuuint32_t box[2] = {64, kBlockPositions}, step[2] = {1, 1};
  const CUresult result = encode(&map,
                                 CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                 2,
                                 rows.data,
                                 size,
                                 stride,
                                 box,
                                 step,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    CudaFailed(__FILE__, __LINE__, "cuTensorMapEncodeTiled", "the KV pool cannot be described");
  }
  return map;
}

}  // namespace

void LaunchPrefillHopper(CudaOps::State& state,
                         const PrefillParams& p,
                         const View<bf16, 4>& kv,
                         int64_t rows) {
  const dim3 grid(static_cast<unsigned>(p.groups * p.heads),
                  static_cast<unsigned>(rows / kRows + p.segment_count));
  Launch(state, PrefillHopperKernel, grid, kThreads, sizeof(Shared) + 1024, p, DescribeKv(kv));
}

}  // namespace asynctls
