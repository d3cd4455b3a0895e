// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/math.h"
#include "kernels/ref/ref_ops.h"

namespace asynctls {

void RefOps::RmsNorm(const RmsNormArgs& a) {
  const int64_t width = a.weight.dim(0);
  for (int64_t t = 0; t < a.x.dim(0); ++t) {
    const bf16* row = a.x[t].data;
    if (!a.residual.empty()) {
      bf16* residual = a.residual[t].data;
      for (int64_t i = 0; i < width; ++i) {
        residual[i] = ToBf16(ToFloat(residual[i]) + ToFloat(row[i]));
      }
      row = residual;
    }
    ref::RmsNormRow(row, a.weight.data, width, a.eps, a.out[t].data);
  }
}

}  // namespace asynctls
