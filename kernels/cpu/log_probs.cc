// SPDX-License-Identifier: Apache-2.0
// Log-probabilities, one row per thread: two passes for the sum, one for the likeliest ids.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/state.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/log_probs.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/cpu/softmax_sum-inl.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls::HWY_NAMESPACE {

// The likeliest ids so far, best first. Ids come in increasing order, so ties stay behind.
struct TopList {
  explicit TopList(int32_t size) : size(size) {}

  void Offer(int32_t id, float logit) {
    if (std::isnan(logit) || (count == size && !(logit > logits[count - 1]))) return;
    int32_t at = count < size ? count++ : count - 1;
    for (; at > 0 && logit > logits[at - 1]; --at) {
      ids[at] = ids[at - 1];
      logits[at] = logits[at - 1];
    }
    ids[at] = id;
    logits[at] = logit;
  }

  const int32_t size;
  int32_t count = 0;
  int32_t ids[kMaxTopIds];
  float logits[kMaxTopIds];
};

// Writes ids [top] and their logits; returns how many there are.
int32_t TopLogits(const float* logits, int64_t n, int32_t top, int32_t* ids, float* best) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  TopList list(top);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    if (list.count == top) {  // most ids do not beat the last one
      const auto last = hn::Set(d, list.logits[top - 1]);
      if (hn::AllFalse(d, hn::Gt(hn::LoadU(d, logits + i), last))) continue;
    }
    for (int64_t j = i; j < i + lanes; ++j) list.Offer(static_cast<int32_t>(j), logits[j]);
  }
  for (; i < n; ++i) list.Offer(static_cast<int32_t>(i), logits[i]);
  std::copy_n(list.ids, list.count, ids);
  std::copy_n(list.logits, list.count, best);
  return list.count;
}

// log(sum of exp(logit - largest)).
double LogSum(const float* logits, int64_t n, float* largest) {
  *largest = LargestLogit(logits, n);
  return std::log(Weigh(logits, n, *largest, 1.0f, nullptr));
}

}  // namespace asynctls::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {
namespace {

HWY_EXPORT(TopLogits);
HWY_EXPORT(LogSum);

}  // namespace

void CpuOps::LogProbs(const LogProbsArgs& a) {
  state_->team.ParallelFor(a.rows.dim(0), [&](int64_t i, Scratch&) {
    const LogProbRow& row = a.rows[i];
    const float* logits = a.logits[row.row].data;
    float largest;
    const double sum = HWY_DYNAMIC_DISPATCH(LogSum)(logits, a.vocab, &largest);
    const auto log_prob = [&](float logit) { return static_cast<float>(logit - largest - sum); };
    if (row.token >= 0) a.log_prob[i] = log_prob(logits[row.token]);
    if (row.top == 0) return;
    int32_t* ids = a.top_ids[i].data;
    float* values = a.top_log_probs[i].data;
    const int32_t count = HWY_DYNAMIC_DISPATCH(TopLogits)(logits, a.vocab, row.top, ids, values);
    for (int32_t k = 0; k < count; ++k) values[k] = log_prob(values[k]);
    std::fill(ids + count, ids + row.top, -1);
    std::fill(values + count, values + row.top, 0.0f);
  });
}

}  // namespace asynctls
#endif
