// SPDX-License-Identifier: Apache-2.0
// Matrix products. Decode rows (few, memory-bound) go through a kernel of our own that reads the
// weights once at the speed of memory; prompt rows through cuBLASLt, always with the same kernel
// for a weight matrix. In both a row of the result does not depend on how many rows there are.
#include <algorithm>

#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

// ---- decode rows: out^T = W x^T, W's rows as the rows of the matrix product, x's as its columns.
//
// A block makes 16 output features (or several times 16, so that x is read less often) of up to 64
// rows; its warps share K among them in pieces of 64, each keeping its own sums, joined in the
// order of the warps. A lane reads 16 bytes of two rows of W at a time: which k of the product they
// stand for does not matter as long as x is read alike. An element's sum is the same in every
// variant.
constexpr int kFeatures = 16;
constexpr int kPiece = 64;  // of K, per warp and turn: two reads of 16 bytes per row and lane
constexpr int kGemmWarps = 8;

template <int kGroups, int kTiles, int kBlocks, typename Out>
__global__ void __launch_bounds__(32 * kGemmWarps, kBlocks)
    DecodeGemmKernel(const bf16* w, const bf16* x, Out* out, int features, int width, int rows) {
  extern __shared__ __align__(16) float parts[];  // [warps][groups][tiles][32][4]
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane / 4, t = lane % 4;
  const int feature = static_cast<int>(blockIdx.x) * kFeatures * kGroups;
  const bf16* from[kGroups][2];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(feature + g * kFeatures + 8 * half + quad, features - 1);
      from[g][half] = w + int64_t{row} * width + t * 8;
    }
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
  constexpr int kAhead = kGroups == 1 ? 2 : 1;  // pieces in flight per warp
  constexpr int kStride = kGemmWarps * kPiece;
  uint4 next[kAhead][kGroups][4];
  auto fetch = [&](int k, uint4(&a)[kGroups][4]) {
    if (k >= width) return;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      a[g][0] = __ldcs(reinterpret_cast<const uint4*>(from[g][0] + k));
      a[g][1] = __ldcs(reinterpret_cast<const uint4*>(from[g][1] + k));
      a[g][2] = __ldcs(reinterpret_cast<const uint4*>(from[g][0] + k + 32));
      a[g][3] = __ldcs(reinterpret_cast<const uint4*>(from[g][1] + k + 32));
    }
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) fetch((warp + i * kGemmWarps) * kPiece, next[i]);
  GridWait();  // the weights above are nobody's output
  GridTrigger();
  for (int base = warp * kPiece; base < width; base += kAhead * kStride) {
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      const int k = base + ahead * kStride;
      if (k >= width) break;
      uint4 b[2][kTiles];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          const int row = j * 8 + quad;
          b[half][j] = make_uint4(0, 0, 0, 0);
          if (row < rows) {
            b[half][j] =
                *reinterpret_cast<const uint4*>(x + int64_t{row} * width + k + 32 * half + t * 8);
          }
        }
      }
      uint4 a[kGroups][4];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[g][i] = next[ahead][g][i];
      }
      fetch(k + kAhead * kStride, next[ahead]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          const uint4 &l = a[g][2 * half], &h = a[g][2 * half + 1];
          const uint32_t first[4] = {l.x, h.x, l.y, h.y}, second[4] = {l.z, h.z, l.w, h.w};
#pragma unroll
          for (int j = 0; j < kTiles; ++j) {
            MultiplyAdd(sum[g][j], first, b[half][j].x, b[half][j].y);
            MultiplyAdd(sum[g][j], second, b[half][j].z, b[half][j].w);
          }
        }
      }
    }
  }
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      *reinterpret_cast<float4*>(parts + (((warp * kGroups + g) * kTiles + j) * 32 + lane) * 4) =
          make_float4(sum[g][j][0], sum[g][j][1], sum[g][j][2], sum[g][j][3]);
    }
  }
  __syncthreads();
  // Element e: feature e % 16 and row of a group and tile; where the product left it: lane,
  // register.
  constexpr int kElements = kGroups * kTiles * kFeatures * 8;
  for (int e = static_cast<int>(threadIdx.x); e < kElements; e += 32 * kGemmWarps) {
    const int f = e % kFeatures, g = e / kFeatures % kGroups;
    const int row = e / (kFeatures * kGroups) % 8, j = e / (kFeatures * kGroups * 8);
    const int at = f % 8 * 4 + row / 2, reg = row % 2 + f / 8 * 2;
    float total = 0;
#pragma unroll
    for (int i = 0; i < kGemmWarps; ++i) {
      total += parts[(((i * kGroups + g) * kTiles + j) * 32 + at) * 4 + reg];
    }
    const int t_row = j * 8 + row, t_feature = feature + g * kFeatures + f;
    if (t_row >= rows || t_feature >= features) continue;
    Out* to = out + int64_t{t_row} * features + t_feature;
    if constexpr (sizeof(Out) == sizeof(float)) {
      *to = total;
    } else {
      *to = Narrow(total);
    }
  }
}

template <int kGroups, int kTiles, int kBlocks, typename Out>
void LaunchDecodeGemm(
    CudaOps::State& state, const View<bf16, 2>& w, const bf16* x, Out* out, int rows) {
  const auto features = static_cast<int>(w.dim(0)), width = static_cast<int>(w.dim(1));
  constexpr int kMade = kFeatures * kGroups;
  const auto kernel = DecodeGemmKernel<kGroups, kTiles, kBlocks, Out>;
  state.AllowShared(reinterpret_cast<const void*>(kernel));
  Launch(state,
         kernel,
         dim3(static_cast<unsigned>((features + kMade - 1) / kMade)),
         32 * kGemmWarps,
         sizeof(float) * kGemmWarps * kGroups * kTiles * 32 * 4,
         w.data,
         x,
         out,
         features,
         width,
         rows);
}

template <typename Out>
void DecodeGemm(CudaOps::State& state, const View<bf16, 2>& w, const bf16* x, Out* out, int rows) {
  // More registers a thread while all blocks are under way at once with them.
  const bool few = w.dim(0) <= int64_t{2} * kFeatures * state.multiprocessors;
  if (rows <= 8 && few) return LaunchDecodeGemm<1, 1, 2>(state, w, x, out, rows);
  if (rows <= 8) return LaunchDecodeGemm<1, 1, 3>(state, w, x, out, rows);
  if (rows <= 16) return LaunchDecodeGemm<1, 2, 2>(state, w, x, out, rows);
  if (rows <= 32) return LaunchDecodeGemm<2, 4, 1>(state, w, x, out, rows);
  LaunchDecodeGemm<2, 8, 1>(state, w, x, out, rows);
}

// ---- any shape: one thread an element. What the others do not cover.
template <typename Out>
__global__ void AnyGemmKernel(
    const bf16* w, const bf16* x, Out* out, int64_t features, int64_t width) {
  GridWait();
  GridTrigger();
  const int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (n >= features) return;
  float sum = 0;
  for (int64_t k = 0; k < width; ++k) {
    sum = fmaf(Widen(x[row * width + k]), Widen(w[n * width + k]), sum);
  }
  if constexpr (sizeof(Out) == sizeof(float)) {
    out[row * features + n] = sum;
  } else {
    out[row * features + n] = Narrow(sum);
  }
}

// ---- prompt rows: cuBLASLt.
constexpr int64_t kTypicalRows = 2048;  // the kernel is chosen for so many

struct Layouts {
  Layouts(int64_t features, int64_t width, int64_t rows, cudaDataType out) {
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transpose = CUBLAS_OP_T;
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(
        product, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)));
    // Column-major there: out^T [features, rows] = W [width, features]^T x^T [width, rows].
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&w, CUDA_R_16BF, width, features, width));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&x, CUDA_R_16BF, width, rows, width));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&y, out, features, rows, features));
  }
  ~Layouts() {
    cublasLtMatrixLayoutDestroy(y);
    cublasLtMatrixLayoutDestroy(x);
    cublasLtMatrixLayoutDestroy(w);
    cublasLtMatmulDescDestroy(product);
  }
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
};

// cuBLASLt's first choice that sums K in one go: with split K the order of summation would depend
// on the number of rows.
cublasLtMatmulAlgo_t Choose(CudaOps::State& state,
                            int64_t features,
                            int64_t width,
                            cudaDataType out) {
  const auto key = std::make_tuple(features, width, static_cast<int>(out));
  const auto known = state.algorithms.find(key);
  if (known != state.algorithms.end()) return known->second;
  const Layouts layouts(features, width, kTypicalRows, out);
  cublasLtMatmulPreference_t preference;
  CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  const auto workspace = static_cast<size_t>(state.gemm_workspace.size());
  CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
      preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)));
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE;
  CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
      preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof(reductions)));
  cublasLtMatmulHeuristicResult_t results[16];
  int count = 0;
  CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(state.lt,
                                              layouts.product,
                                              layouts.w,
                                              layouts.x,
                                              layouts.y,
                                              layouts.y,
                                              preference,
                                              16,
                                              results,
                                              &count));
  cublasLtMatmulPreferenceDestroy(preference);
  for (int i = 0; i < count; ++i) {
    int32_t splits = 0;
    size_t written = 0;
    if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
    CUBLAS_CHECK(cublasLtMatmulAlgoConfigGetAttribute(
        &results[i].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof(splits), &written));
    if (splits > 1) continue;
    return state.algorithms.emplace(key, results[i].algo).first->second;
  }
  CudaFailed(__FILE__, __LINE__, "cublasLtMatmulAlgoGetHeuristic", "no kernel without split K");
}

template <typename Out>
void PromptGemm(
    CudaOps::State& state, const View<bf16, 2>& w, const bf16* x, Out* out, int64_t rows) {
  const cudaDataType type = sizeof(Out) == sizeof(float) ? CUDA_R_32F : CUDA_R_16BF;
  const cublasLtMatmulAlgo_t algorithm = Choose(state, w.dim(0), w.dim(1), type);
  const Layouts layouts(w.dim(0), w.dim(1), rows, type);
  const float one = 1, zero = 0;
  CUBLAS_CHECK(cublasLtMatmul(state.lt,
                              layouts.product,
                              &one,
                              w.data,
                              layouts.w,
                              x,
                              layouts.x,
                              &zero,
                              out,
                              layouts.y,
                              out,
                              layouts.y,
                              &algorithm,
                              state.gemm_workspace.data,
                              static_cast<size_t>(state.gemm_workspace.size()),
                              state.stream));
}

template <typename Out>
void Product(CudaOps::State& state,
             const View<bf16, 2>& w,
             const View<const bf16, 2>& x,
             const View<Out, 2>& out,
             bool decode) {
  if (out.empty()) return;
  const int64_t width = w.dim(1), rows = x.dim(0);
  if (width % kPiece != 0 || w.dim(0) % 8 != 0 || !Aligned(w.data) || !Aligned(x.data) ||
      !Aligned(out.data)) {
    Launch(state,
           AnyGemmKernel<Out>,
           dim3(static_cast<unsigned>((w.dim(0) + 127) / 128), static_cast<unsigned>(rows)),
           128,
           0,
           w.data,
           x.data,
           out.data,
           w.dim(0),
           width);
    return;
  }
  if (!decode) return PromptGemm(state, w, x.data, out.data, rows);
  constexpr int64_t kMost = 64;
  for (int64_t t = 0; t < rows; t += kMost) {
    DecodeGemm(state,
               w,
               x.data + t * width,
               out.data + t * w.dim(0),
               static_cast<int>(std::min(kMost, rows - t)));
  }
}

}  // namespace

void CudaOps::Gemm(const GemmArgs& a) { Product(*state_, a.w->data, a.x, a.out, a.decode); }

// Few rows in any step: the rows that are sampled, or a tile of a prompt's.
void CudaOps::Logits(const LogitsArgs& a) { Product(*state_, a.w->data, a.x, a.out, true); }

}  // namespace asynctls
