// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/math.h"
#include "kernels/ref/ref_ops.h"

namespace asynctls {

void RefOps::Gemm(const GemmArgs& a) {
  const View<bf16, 2> w = a.w->data;
  for (int64_t t = 0; t < a.x.dim(0); ++t) {
    for (int64_t n = 0; n < w.dim(0); ++n) {
      a.out(t, n) = ToBf16(ref::Dot(a.x[t].data, w[n].data, w.dim(1)));
    }
  }
}

void RefOps::Logits(const LogitsArgs& a) {
  const View<bf16, 2> w = a.w->data;
  for (int64_t s = 0; s < a.x.dim(0); ++s) {
    for (int64_t n = 0; n < w.dim(0); ++n) {
      a.out(s, n) = ref::Dot(a.x[s].data, w[n].data, w.dim(1));
    }
  }
}

}  // namespace asynctls
