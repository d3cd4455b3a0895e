// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/math.h"
#include "kernels/ref/ref_ops.h"

namespace asynctls {

void RefOps::Gemm(const GemmArgs& a) {
  const View<bf16, 2> w = a.w->data;
  View<const bf16, 2> x = a.x;
  if (!a.norm.empty()) {
    RmsNorm({.x = x, .residual = {}, .weight = a.norm, .out = a.normed, .eps = a.eps});
    x = a.normed;
  }
  for (int64_t t = 0; t < x.dim(0); ++t) {
    for (int64_t n = 0; n < w.dim(0); ++n) {
      a.out(t, n) = ToBf16(ref::Dot(x[t].data, w[n].data, w.dim(1)));
    }
  }
  for (int64_t i = 0; i < a.residual.size(); ++i) {
    a.residual.data[i] = ToBf16(ToFloat(a.residual.data[i]) + ToFloat(a.out.data[i]));
  }
  if (!a.gated.empty()) SwiGlu({.gate_up = a.out, .out = a.gated});
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
