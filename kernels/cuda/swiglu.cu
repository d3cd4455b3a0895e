// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

constexpr int kThreads = 256;

// kWide: 8 values a thread; else one.
template <bool kWide>
__global__ void __launch_bounds__(kThreads)
    SwiGluKernel(const bf16* gate_up, int width, bf16* out) {
  GridTrigger();
  GridWait();
  const int i = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  if (i * (kWide ? 8 : 1) >= width) return;
  const bf16* row = gate_up + int64_t{blockIdx.x} * 2 * width;
  bf16* to = out + int64_t{blockIdx.x} * width;
  if constexpr (kWide) {
    uint4 gate = reinterpret_cast<const uint4*>(row)[i];
    const uint4 up = reinterpret_cast<const uint4*>(row + width)[i];
    auto* g = reinterpret_cast<uint32_t*>(&gate);
    const auto* u = reinterpret_cast<const uint32_t*>(&up);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      g[j] = NarrowPair(Gated(WidenLow(g[j]), WidenLow(u[j])),
                        Gated(WidenHigh(g[j]), WidenHigh(u[j])));
    }
    reinterpret_cast<uint4*>(to)[i] = gate;
  } else {
    to[i] = Narrow(Gated(Widen(row[i]), Widen(row[width + i])));
  }
}

}  // namespace

void CudaOps::SwiGlu(const SwiGluArgs& a) {
  if (a.out.empty()) return;
  const int64_t width = a.out.dim(1);
  const bool wide = width % 8 == 0 && Aligned(a.gate_up.data) && Aligned(a.out.data);
  const int64_t items = wide ? width / 8 : width;
  Launch(*state_,
         wide ? SwiGluKernel<true> : SwiGluKernel<false>,
         dim3(static_cast<unsigned>(a.out.dim(0)),
              static_cast<unsigned>((items + kThreads - 1) / kThreads)),
         kThreads,
         0,
         a.gate_up.data,
         static_cast<int>(width),
         a.out.data);
}

}  // namespace asynctls
