// SPDX-License-Identifier: Apache-2.0
// Products of prompt rows, by cuBLASLt, always with the same kernel for a weight matrix: a row of
// the result does not depend on how many rows there are. Private to kernels/cuda.
#pragma once

#include "kernels/cuda/cuda_ops.h"

namespace asynctls {

// out [rows, N] = x [rows, K] w [N, K]^T, on the stream. Requires: K and N multiples of 8, all
// aligned to 16 bytes.
void PromptGemm(
    CudaOps::State& state, const View<bf16, 2>& w, const bf16* x, bf16* out, int64_t rows);
void PromptGemm(
    CudaOps::State& state, const View<bf16, 2>& w, const bf16* x, float* out, int64_t rows);

}  // namespace asynctls
