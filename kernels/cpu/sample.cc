// SPDX-License-Identifier: Apache-2.0
// Sampling, one row per thread. The weights of all ids come from vectors; ranking is only done as
// far as top_k and top_p ask for it.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/state.h"
#include "kernels/ref/philox.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace asynctls::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The largest logit, -inf if there is none; NaN is passed over.
float LargestLogit(const float* logits, int64_t n) {
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
double Weigh(
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

}  // namespace asynctls::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {
namespace {

HWY_EXPORT(LargestLogit);
HWY_EXPORT(Weigh);

// Ranks the ids, largest logit first and ties to the lower id, as far as the cuts need: the best
// top_k, of these the smallest prefix that reaches top_p. Returns how many are kept; they come
// first in `ids`, in no order.
int64_t Cut(const float* logits,
            const float* weights,
            const SampleRow& row,
            int64_t n,
            double total,
            int32_t* ids) {
  std::iota(ids, ids + n, 0);
  const auto better = [&](int32_t a, int32_t b) {
    const float x = logits[a], y = logits[b];
    if (std::isnan(x) || std::isnan(y)) {
      return std::isnan(x) == std::isnan(y) ? a < b : std::isnan(y);
    }
    return x != y ? x > y : a < b;
  };
  int64_t kept = n;
  double mass = total;
  if (row.top_k > 0 && row.top_k < n) {
    std::nth_element(ids, ids + row.top_k, ids + n, better);
    kept = row.top_k;
    mass = 0;
    std::sort(ids, ids + kept, better);
    for (int64_t i = 0; i < kept; ++i) mass += weights[ids[i]];
  }
  if (row.top_p < 1) {
    const double needed = row.top_p * mass;
    double reached = 0;
    int64_t count = 0;
    // Ranks ever more of them until they reach the mass.
    for (int64_t ranked = 0, next = 256; count < kept; next *= 8) {
      next = std::min(next, kept);
      if (next < kept) std::nth_element(ids + ranked, ids + next, ids + kept, better);
      std::sort(ids + ranked, ids + next, better);
      while (count < next && (count == 0 || reached < needed)) reached += weights[ids[count++]];
      if (count < next || reached >= needed) break;
      ranked = next;
    }
    kept = count;
  }
  return kept;
}

// Inverse CDF over the kept ids (all of [0, n) where `ids` is null) in their order.
int32_t Draw(const float* weights, const SampleRow& row, const int32_t* ids, int64_t n) {
  const auto id = [&](int64_t i) { return ids == nullptr ? static_cast<int32_t>(i) : ids[i]; };
  const auto weight = [&](int64_t i) {
    const float w = weights[id(i)];
    return w < row.min_p ? 0.0f : w;
  };
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += weight(i);
  const double target = SampleUniform(row.seed, row.index, row.position) * total;
  double reached = 0;
  int32_t last = id(0);
  for (int64_t i = 0; i < n; ++i) {
    if (weight(i) == 0) continue;
    last = id(i);
    reached += weight(i);
    if (reached > target) break;
  }
  return last;
}

int32_t SampleToken(
    const float* logits, int64_t vocab, const SampleRow& row, float largest, Scratch& scratch) {
  if (row.temperature == 0) {
    const float* at = std::find(logits, logits + vocab, largest);
    return at == logits + vocab ? 0 : static_cast<int32_t>(at - logits);
  }
  float* weights = scratch.Get<float>(0, vocab);
  const double total =
      HWY_DYNAMIC_DISPATCH(Weigh)(logits, vocab, largest, 1.0f / row.temperature, weights);
  if (row.top_k <= 0 && row.top_p >= 1) return Draw(weights, row, nullptr, vocab);
  int32_t* ids = scratch.Get<int32_t>(1, vocab);
  const int64_t kept = Cut(logits, weights, row, vocab, total, ids);
  std::sort(ids, ids + kept);
  return Draw(weights, row, ids, kept);
}

}  // namespace

void CpuOps::Sample(const SampleArgs& a) {
  state_->team.ParallelFor(a.rows.dim(0), [&](int64_t s, Scratch& scratch) {
    const SampleRow& row = a.rows[s];
    const float* logits = a.logits[s].data;
    const float largest = HWY_DYNAMIC_DISPATCH(LargestLogit)(logits, a.vocab);
    const int32_t token = SampleToken(logits, a.vocab, row, largest, scratch);
    const double total = HWY_DYNAMIC_DISPATCH(Weigh)(logits, a.vocab, largest, 1.0f, nullptr);
    a.token[s] = token;
    a.log_prob[s] = static_cast<float>(logits[token] - largest - std::log(total));
    a.last_token[row.lane] = token;
  });
}

}  // namespace asynctls
#endif
