// SPDX-License-Identifier: Apache-2.0
// The vector form of kernels/ref/exact.h, once per instruction set (Highway -inl.h: no include
// guard in the usual sense). Bit-identical to it; sets without a fused multiply-add call it.
#if defined(ASYNCTLS_EXACT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASYNCTLS_EXACT_INL_H_
#undef ASYNCTLS_EXACT_INL_H_
#else
#define ASYNCTLS_EXACT_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/ref/exact.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_NATIVE_FMA && HWY_TARGET != HWY_SCALAR
// out[c] = ExactProduct(x, table + c, r, d_count) for columns [c, c + kVectors * lanes).
template <int kVectors>
HWY_INLINE void ExactColumns(const float* HWY_RESTRICT x,
                             const float* HWY_RESTRICT table,
                             int64_t r,
                             int64_t d_count,
                             float* HWY_RESTRICT out) {
  const hn::ScalableTag<float> df;
  using V = hn::Vec<decltype(df)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  V acc[4][kVectors];
  for (auto& chain : acc) {
    for (V& v : chain) v = hn::Zero(df);
  }
  for (int64_t d = 0; d < d_count; d += 4) {
    for (int j = 0; j < 4 && d + j < d_count; ++j) {
      const V xd = hn::Set(df, x[d + j]);
      const float* row = table + (d + j) * r;
      for (int v = 0; v < kVectors; ++v) {
        acc[j][v] = hn::MulAdd(xd, hn::LoadU(df, row + v * lanes), acc[j][v]);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    hn::StoreU(
        hn::Add(hn::Add(acc[0][v], acc[1][v]), hn::Add(acc[2][v], acc[3][v])), df, out + v * lanes);
  }
}
#endif

// out[c] = ExactProduct(x, table + c, r, d_count) for all r columns.
HWY_INLINE void ExactProducts(const float* HWY_RESTRICT x,
                              const float* HWY_RESTRICT table,
                              int64_t r,
                              int64_t d_count,
                              float* HWY_RESTRICT out) {
  int64_t c = 0;
#if HWY_NATIVE_FMA && HWY_TARGET != HWY_SCALAR
  const auto lanes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>()));
  for (; c + 2 * lanes <= r; c += 2 * lanes) ExactColumns<2>(x, table + c, r, d_count, out + c);
  for (; c + lanes <= r; c += lanes) ExactColumns<1>(x, table + c, r, d_count, out + c);
#endif
  for (; c < r; ++c) out[c] = ExactProduct(x, table + c, r, d_count);
}

// x[d] = q[d] widened; d_count need not be a multiple of anything.
HWY_INLINE void Widen(const bf16* HWY_RESTRICT q, int64_t d_count, float* HWY_RESTRICT x) {
  const hn::ScalableTag<float> df;
  const hn::RebindToUnsigned<decltype(df)> du;
  const hn::Rebind<uint16_t, decltype(df)> dh;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto* bits = reinterpret_cast<const uint16_t*>(q);
  int64_t d = 0;
  for (; d + lanes <= d_count; d += lanes) {
    const auto wide = hn::PromoteTo(du, hn::LoadU(dh, bits + d));
    hn::StoreU(hn::BitCast(df, hn::ShiftLeft<16>(wide)), df, x + d);
  }
  for (; d < d_count; ++d) x[d] = ToFloat(q[d]);
}

// TurnQuery of a bf16 query; `x` [D] and `product` [r] are scratch.
HWY_INLINE float TurnHead(const bf16* HWY_RESTRICT q,
                          const KeyCodeTable& t,
                          int64_t g,
                          float attention_scale,
                          float* HWY_RESTRICT x,
                          float* HWY_RESTRICT product,
                          int8_t* HWY_RESTRICT code8) {
  const int64_t d_count = t.turn.dim(1), r = t.turn.dim(2);
  Widen(q, d_count, x);
  ExactProducts(x, t.turn.data + g * d_count * r, r, d_count, product);
  float m = 0.0f;
  bool finite = true;
  for (int64_t c = 0; c < r; ++c) {
    const float magnitude = std::fabs(product[c]);
    finite = finite && magnitude <= kTurnedLargest;
    m = magnitude > m ? magnitude : m;
  }
  if (!finite || m < kTurnedSmallest) {
    std::fill(code8, code8 + r, int8_t{0});
    return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const float unit = 127.0f / m;
  int64_t c = 0;
  for (; c + lanes <= r; c += lanes) {
    const auto rounded = hn::NearestInt(hn::Mul(hn::LoadU(df, product + c), hn::Set(df, unit)));
    hn::StoreU(hn::DemoteTo(hn::Rebind<int8_t, decltype(di)>(), rounded),
               hn::Rebind<int8_t, decltype(di)>(),
               code8 + c);
  }
  for (; c < r; ++c) code8[c] = static_cast<int8_t>(std::nearbyint(product[c] * unit));
  return m * (attention_scale / 254.0f);
}

// The polynomial of FixedExp2: 2^f for f in [0, 1].
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2Fraction(D df, V f) {
  V p = hn::Set(df, kExp2Coefficients[5]);
  for (int k = 4; k >= 0; --k) p = hn::MulAdd(p, f, hn::Set(df, kExp2Coefficients[k]));
  return p;
}

// weight[i] = float(FixedExp2((logit[i] - top) * log2 e)) in place, for logits <= top; returns the
// sum. -inf gives 0. `count` is a multiple of 64.
HWY_INLINE uint64_t FixedExp2InPlace(float* HWY_RESTRICT x, int64_t count, float top) {
  uint64_t sum = 0;
#if HWY_NATIVE_FMA && HWY_TARGET != HWY_SCALAR
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto minus = hn::Set(df, top);
  const int64_t piece = 128 * lanes;  // 128 weights of 2^24 fit 32 bits
  for (int64_t begin = 0; begin < count; begin += piece) {
    auto part = hn::Zero(hn::RebindToUnsigned<decltype(df)>());
    for (int64_t i = begin; i < std::min(count, begin + piece); i += lanes) {
      const auto y = hn::Mul(hn::Sub(hn::LoadU(df, x + i), minus), hn::Set(df, kLog2E));
      const auto n = hn::Floor(y);
      const auto f = hn::Sub(y, n);
      const auto p = Exp2Fraction(df, f);
      const auto exponent = hn::Add(hn::ConvertTo(di, n), hn::Set(di, 24 + 127));
      const auto scale = hn::BitCast(df, hn::ShiftLeft<23>(exponent));
      const auto w = hn::IfThenElseZero(hn::RebindMask(di, hn::Ge(y, hn::Set(df, -24.0f))),
                                        hn::NearestInt(hn::Mul(p, scale)));
      part = hn::Add(part, hn::BitCast(hn::RebindToUnsigned<decltype(df)>(), w));
      hn::StoreU(hn::ConvertTo(df, w), df, x + i);
    }
    HWY_ALIGN uint32_t lane[HWY_MAX_BYTES / 4];
    hn::Store(part, hn::RebindToUnsigned<decltype(df)>(), lane);
    for (int64_t k = 0; k < lanes; ++k) sum += lane[k];
  }
#else
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t w = FixedExp2((x[i] - top) * kLog2E);
    sum += w;
    x[i] = static_cast<float>(w);
  }
#endif
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#endif  // ASYNCTLS_EXACT_INL_H_
