// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/cpu/state.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rms_norm.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/highway.h>

#include "kernels/cpu/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls::HWY_NAMESPACE {

// residual += x, in [i, n) as far as whole vectors go; returns where it stopped.
template <class D>
int64_t AddSpan(D d, int64_t i, int64_t n, const bf16* x, bf16* residual) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (; i + lanes <= n; i += lanes) {
    StoreBf16(d, hn::Add(LoadBf16(d, residual + i), LoadBf16(d, x + i)), residual + i);
  }
  return i;
}

// out = bf16(x * inverse) * weight likewise.
template <class D>
int64_t ScaleSpan(
    D d, int64_t i, int64_t n, const bf16* x, const bf16* weight, float inverse, bf16* out) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto factor = hn::Set(d, inverse);
  for (; i + lanes <= n; i += lanes) {
    const auto normed = RoundToBf16(d, hn::Mul(LoadBf16(d, x + i), factor));
    StoreBf16(d, hn::Mul(normed, LoadBf16(d, weight + i)), out + i);
  }
  return i;
}

void RmsNormRow(
    const bf16* x, bf16* residual, const bf16* weight, int64_t n, float eps, bf16* out) {
  const hn::ScalableTag<float> d;
  if (residual != nullptr) {
    const int64_t rest = AddSpan(d, 0, n, x, residual);
    AddSpan(OneLane(), rest, n, x, residual);
    x = residual;
  }
  const float inverse = 1.0f / std::sqrt(SumOfSquares(x, n) / static_cast<float>(n) + eps);
  const int64_t rest = ScaleSpan(d, 0, n, x, weight, inverse, out);
  ScaleSpan(OneLane(), rest, n, x, weight, inverse, out);
}

}  // namespace asynctls::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {

HWY_EXPORT(RmsNormRow);

void CpuOps::RmsNorm(const RmsNormArgs& a) {
  const int64_t width = a.weight.dim(0);
  const auto row = HWY_DYNAMIC_DISPATCH(RmsNormRow);
  state_->team.ParallelFor(a.x.dim(0), RowGrain(width), [&](int64_t t, Scratch&) {
    bf16* residual = a.residual.empty() ? nullptr : a.residual[t].data;
    row(a.x[t].data, residual, a.weight.data, width, a.eps, a.out[t].data);
  });
}

}  // namespace asynctls
#endif
