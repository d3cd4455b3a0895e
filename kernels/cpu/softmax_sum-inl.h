// SPDX-License-Identifier: Apache-2.0
// The two passes over a row of logits that sampling and log-probabilities share, once per
// instruction set: the largest, and the sum of the weights.
#if defined(ASYNCTLS_SOFTMAX_SUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASYNCTLS_SOFTMAX_SUM_INL_H_
#undef ASYNCTLS_SOFTMAX_SUM_INL_H_
#else
#define ASYNCTLS_SOFTMAX_SUM_INL_H_
#endif

#include <cmath>
#include <cstdint>
#include <limits>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The largest logit, -inf if there is none; NaN is passed over.
HWY_INLINE float LargestLogit(const float* logits, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto top = lowest;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto x = hn::LoadU(d, logits + i);
    top = hn::Max(top, hn::IfThenElse(hn::IsNaN(x), lowest, x));
  }
  float largest = hn::GetLane(hn::MaxOfLanes(d, top));
  for (; i < n; ++i) largest = logits[i] > largest ? logits[i] : largest;
  return largest;
}

// Sum of exp((logits[i] - largest) * inverse_temperature), NaN giving 0; each is written to
// `weights` unless that is null.
HWY_INLINE double Weigh(
    const float* logits, int64_t n, float largest, float inverse_temperature, float* weights) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto top = hn::Set(d, largest);
  const auto factor = hn::Set(d, inverse_temperature);
  double total = 0;
  int64_t i = 0;
  while (i + lanes <= n) {
    auto sum = hn::Zero(d);
    for (int k = 0; k < 64 && i + lanes <= n; ++k, i += lanes) {
      const auto x = hn::Mul(hn::Sub(hn::LoadU(d, logits + i), top), factor);
      const auto weight = hn::IfThenZeroElse(hn::IsNaN(x), hn::Exp(d, x));
      if (weights != nullptr) hn::StoreU(weight, d, weights + i);
      sum = hn::Add(sum, weight);
    }
    total += hn::GetLane(hn::SumOfLanes(d, sum));
  }
  for (; i < n; ++i) {
    const float x = (logits[i] - largest) * inverse_temperature;
    const float weight = std::isnan(x) ? 0.0f : std::exp(x);
    if (weights != nullptr) weights[i] = weight;
    total += weight;
  }
  return total;
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#endif  // ASYNCTLS_SOFTMAX_SUM_INL_H_
