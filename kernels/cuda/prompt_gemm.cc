// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/prompt_gemm.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

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

void Multiply(CudaOps::State& state,
              const View<bf16, 2>& w,
              const bf16* x,
              void* out,
              cudaDataType type,
              int64_t rows) {
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

}  // namespace

void PromptGemm(
    CudaOps::State& state, const View<bf16, 2>& w, const bf16* x, bf16* out, int64_t rows) {
  Multiply(state, w, x, out, CUDA_R_16BF, rows);
}
void PromptGemm(
    CudaOps::State& state, const View<bf16, 2>& w, const bf16* x, float* out, int64_t rows) {
  Multiply(state, w, x, out, CUDA_R_32F, rows);
}

}  // namespace asynctls
