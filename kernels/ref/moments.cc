// SPDX-License-Identifier: Apache-2.0
// Sums and second moments, in double.
#include "kernels/ref/ref_ops.h"

namespace asynctls {

void RefOps::Moments(const MomentsArgs& a) {
  const int64_t d_count = a.first.dim(0);
  for (int64_t i = 0; i < a.count; ++i) {
    const bf16* x = a.x + i * a.stride;
    for (int64_t d = 0; d < d_count; ++d) {
      const double xd = ToFloat(x[d]);
      a.first[d] += xd;
      for (int64_t e = 0; e < d_count; ++e) a.second(d, e) += xd * ToFloat(x[e]);
    }
  }
}

}  // namespace asynctls
