// SPDX-License-Identifier: Apache-2.0
// bf16 in Highway vectors of fp32, bit for bit as kernels/device/dtype.h. Included per target.
#if defined(ASYNCTLS_KERNELS_CPU_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASYNCTLS_KERNELS_CPU_BF16_INL_H_
#undef ASYNCTLS_KERNELS_CPU_BF16_INL_H_
#else
#define ASYNCTLS_KERNELS_CPU_BF16_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/device/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One lane, for what is left of a row after the last whole vector.
using OneLane = hn::CappedTag<float, 1>;

template <class D>
HWY_INLINE hn::Vec<D> LoadBf16(D d, const bf16* from) {
  const hn::Rebind<uint16_t, D> half;
  const hn::RebindToUnsigned<D> bits;
  const auto wide = hn::PromoteTo(bits, hn::LoadU(half, reinterpret_cast<const uint16_t*>(from)));
  return hn::BitCast(d, hn::ShiftLeft<16>(wide));
}

// The bits of v rounded to bf16, in the low half of each lane.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> Bf16Bits([[maybe_unused]] D d, hn::Vec<D> v) {
  const hn::RebindToUnsigned<D> bits;
  const auto u = hn::BitCast(bits, v);
  const auto high = hn::ShiftRight<16>(u);
  const auto odd = hn::And(high, hn::Set(bits, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(u, hn::Add(hn::Set(bits, 0x7fff), odd)));
  const auto quiet = hn::Or(high, hn::Set(bits, 0x40));
  return hn::IfThenElse(hn::RebindMask(bits, hn::IsNaN(v)), quiet, rounded);
}

template <class D>
HWY_INLINE hn::Vec<D> RoundToBf16(D d, hn::Vec<D> v) {
  return hn::BitCast(d, hn::ShiftLeft<16>(Bf16Bits(d, v)));
}

template <class D>
HWY_INLINE void StoreBf16(D d, hn::Vec<D> v, bf16* to) {
  const hn::Rebind<uint16_t, D> half;
  const hn::RebindToSigned<D> wide;
  hn::StoreU(
      hn::DemoteTo(half, hn::BitCast(wide, Bf16Bits(d, v))), half, reinterpret_cast<uint16_t*>(to));
}

// sum of x[i]^2. The order depends on n and the vector width only.
HWY_INLINE float SumOfSquares(const bf16* x, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto even = hn::Zero(d), odd = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const auto a = LoadBf16(d, x + i), b = LoadBf16(d, x + i + lanes);
    even = hn::MulAdd(a, a, even);
    odd = hn::MulAdd(b, b, odd);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  for (; i < n; ++i) sum += ToFloat(x[i]) * ToFloat(x[i]);
  return sum;
}

}  // namespace asynctls::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
