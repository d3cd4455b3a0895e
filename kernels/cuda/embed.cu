// SPDX-License-Identifier: Apache-2.0
// Copies of rows: of the embedding, and of a step.
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

// Copies `count` values; whole words of 16 bytes where both sides allow it.
__device__ void CopyRow(const bf16* from, bf16* to, int64_t count) {
  const bool aligned =
      ((reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) & 15) == 0;
  const int64_t words = aligned ? count / 8 : 0;
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  }
  for (int64_t i = words * 8 + threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
}

__global__ void EmbedKernel(const int32_t* ids,
                            const int32_t* last_token,
                            const bf16* table,
                            int64_t rows,
                            int64_t width,
                            int32_t first_id,
                            bf16* out) {
  GridTrigger();
  GridWait();
  const int64_t t = blockIdx.x;
  const int32_t id = ids[t] >= 0 ? ids[t] : last_token[-1 - ids[t]];
  const int64_t row = int64_t{id} - first_id;
  if (row >= 0 && row < rows) {
    CopyRow(table + row * width, out + t * width, width);
  } else {
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) out[t * width + i] = {0};
  }
}

__global__ void CopyRowsKernel(const bf16* src, const int32_t* rows, int64_t width, bf16* dst) {
  GridTrigger();
  GridWait();
  const int64_t s = blockIdx.x;
  CopyRow(src + rows[s] * width, dst + s * width, width);
}

}  // namespace

void CudaOps::Embed(const EmbedArgs& a) {
  if (a.ids.empty()) return;
  Launch(*state_,
         EmbedKernel,
         dim3(static_cast<unsigned>(a.ids.dim(0))),
         128,
         0,
         a.ids.data,
         a.last_token.data,
         a.table.data,
         a.table.dim(0),
         a.table.dim(1),
         a.first_id,
         a.out.data);
}

void CudaOps::CopyRows(const CopyRowsArgs& a) {
  if (a.rows.empty()) return;
  Launch(*state_,
         CopyRowsKernel,
         dim3(static_cast<unsigned>(a.rows.dim(0))),
         128,
         0,
         a.src.data,
         a.rows.data,
         a.src.dim(1),
         a.dst.data);
}

}  // namespace asynctls
