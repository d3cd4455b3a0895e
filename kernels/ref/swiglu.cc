// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/ref/ref_ops.h"

namespace asynctls {

void RefOps::SwiGlu(const SwiGluArgs& a) {
  const int64_t width = a.out.dim(1);
  for (int64_t t = 0; t < a.out.dim(0); ++t) {
    for (int64_t i = 0; i < width; ++i) {
      const float gate = ToFloat(a.gate_up(t, i));
      const float up = ToFloat(a.gate_up(t, width + i));
      a.out(t, i) = ToBf16(gate / (1.0f + std::exp(-gate)) * up);
    }
  }
}

}  // namespace asynctls
