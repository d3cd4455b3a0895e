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
// A block makes 16 output features of up to 64 rows; its warps share K among them in pieces of 64,
// each keeping its own sums, joined in the order of the warps. A lane reads 16 bytes of two rows of
// W at a time: which k of the product they stand for does not matter as long as x is read alike.
constexpr int kFeatures = 16;
constexpr int kPiece = 64;  // of K, per warp and turn: two reads of 16 bytes per row and lane

template <int kWarps, int kTiles, typename Out>
__global__ void __launch_bounds__(32 * kWarps)
    DecodeGemmKernel(const bf16* w, const bf16* x, Out* out, int features, int width, int rows) {
  __shared__ float parts[kWarps][kTiles][32][4];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane / 4, t = lane % 4;
  const int feature = static_cast<int>(blockIdx.x) * kFeatures;
  const bf16* low = w + int64_t{min(feature + quad, features - 1)} * width + t * 8;
  const bf16* high = w + int64_t{min(feature + quad + 8, features - 1)} * width + t * 8;
  float sum[kTiles][4];
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[j][i] = 0;
  }
  constexpr int kAhead = 2;  // pieces in flight per warp
  uint4 next[kAhead][4];
  auto fetch = [&](int k, uint4(&a)[4]) {
    if (k >= width) return;
    a[0] = __ldcs(reinterpret_cast<const uint4*>(low + k));
    a[1] = __ldcs(reinterpret_cast<const uint4*>(high + k));
    a[2] = __ldcs(reinterpret_cast<const uint4*>(low + k + 32));
    a[3] = __ldcs(reinterpret_cast<const uint4*>(high + k + 32));
  };
  constexpr int kStride = kWarps * kPiece;
#pragma unroll
  for (int i = 0; i < kAhead; ++i) fetch((warp + i * kWarps) * kPiece, next[i]);
  GridWait();  // the weights above are nobody's output
  GridTrigger();
  for (int base = warp * kPiece; base < width; base += kAhead * kStride) {
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      const int k = base + ahead * kStride;
      if (k >= width) break;
      uint4 a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = next[ahead][i];
      fetch(k + kAhead * kStride, next[ahead]);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const int row = j * 8 + quad;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint4 b = make_uint4(0, 0, 0, 0);
          if (row < rows) {
            b = *reinterpret_cast<const uint4*>(x + int64_t{row} * width + k + 32 * half + t * 8);
          }
          const uint4 &l = a[2 * half], &h = a[2 * half + 1];
          const uint32_t first[4] = {l.x, h.x, l.y, h.y}, second[4] = {l.z, h.z, l.w, h.w};
          MultiplyAdd(sum[j], first, b.x, b.y);
          MultiplyAdd(sum[j], second, b.z, b.w);
        }
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    *reinterpret_cast<float4*>(parts[warp][j][lane]) =
        make_float4(sum[j][0], sum[j][1], sum[j][2], sum[j][3]);
  }
  __syncthreads();
  // Element e of a tile: feature e / 8, row e % 8; where the product left it: lane, register.
  for (int e = static_cast<int>(threadIdx.x); e < kTiles * kFeatures * 8; e += 32 * kWarps) {
    const int j = e / (kFeatures * 8), row = e / kFeatures % 8, f = e % kFeatures;
    const int from = f % 8 * 4 + row / 2, reg = row % 2 + f / 8 * 2;
    float total = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) total += parts[i][j][from][reg];
    const int t_row = j * 8 + row;
    if (t_row >= rows || feature + f >= features) continue;
    Out* to = out + int64_t{t_row} * features + feature + f;
    if constexpr (sizeof(Out) == sizeof(float)) {
      *to = total;
    } else {
      *to = Narrow(total);
    }
  }
}

template <typename Out>
void DecodeGemm(
    const CudaOps::State& state, const View<bf16, 2>& w, const bf16* x, Out* out, int rows) {
  const auto features = static_cast<int>(w.dim(0)), width = static_cast<int>(w.dim(1));
  const dim3 grid(static_cast<unsigned>((features + kFeatures - 1) / kFeatures));
  constexpr int kWarps = 8;
  const auto kernel = rows <= 8    ? DecodeGemmKernel<kWarps, 1, Out>
                      : rows <= 16 ? DecodeGemmKernel<kWarps, 2, Out>
                      : rows <= 32 ? DecodeGemmKernel<kWarps, 4, Out>
                                   : DecodeGemmKernel<kWarps, 8, Out>;
  Launch(state, kernel, grid, 32 * kWarps, 0, w.data, x, out, features, width, rows);
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

bool Aligned(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

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
