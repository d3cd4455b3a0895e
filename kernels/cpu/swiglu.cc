// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/state.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/swiglu.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include "kernels/cpu/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls::HWY_NAMESPACE {

template <class D>
int64_t SwiGluSpan(D d, int64_t i, int64_t n, const bf16* gate_up, bf16* out) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto one = hn::Set(d, 1.0f);
  const auto lowest = hn::Set(d, -88.0f);  // e^88 is still finite; below, silu is zero
  for (; i + lanes <= n; i += lanes) {
    const auto gate = LoadBf16(d, gate_up + i);
    const auto up = LoadBf16(d, gate_up + n + i);
    const auto power = hn::Exp(d, hn::Neg(hn::Max(gate, lowest)));
    const auto silu = hn::IfThenZeroElse(hn::Lt(gate, lowest), hn::Div(gate, hn::Add(one, power)));
    StoreBf16(d, hn::Mul(silu, up), out + i);
  }
  return i;
}

void SwiGluRow(const bf16* gate_up, int64_t n, bf16* out) {
  const int64_t rest = SwiGluSpan(hn::ScalableTag<float>(), 0, n, gate_up, out);
  SwiGluSpan(OneLane(), rest, n, gate_up, out);
}

}  // namespace asynctls::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {

HWY_EXPORT(SwiGluRow);

void CpuOps::SwiGlu(const SwiGluArgs& a) {
  const int64_t width = a.out.dim(1);
  const auto row = HWY_DYNAMIC_DISPATCH(SwiGluRow);
  state_->team.ParallelFor(a.out.dim(0), RowGrain(2 * width), [&](int64_t t, Scratch&) {
    row(a.gate_up[t].data, width, a.out[t].data);
  });
}

}  // namespace asynctls
#endif
