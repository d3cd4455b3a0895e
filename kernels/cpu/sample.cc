// SPDX-License-Identifier: Apache-2.0
// Sampling, one row per thread. The weights of all ids come from vectors; ranking is only done as
// far as top_k and top_p ask for it. Rows with penalties or edits work on a copy of their logits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/cpu/state.h"
#include "kernels/ref/philox.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/cpu/softmax_sum-inl.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

float SampleLargest(const float* logits, int64_t n) { return LargestLogit(logits, n); }
double SampleWeigh(
    const float* logits, int64_t n, float largest, float inverse_temperature, float* weights) {
  return Weigh(logits, n, largest, inverse_temperature, weights);
}

void Penalise(const SampleRow& row, bool in_prompt, uint16_t count, float& logit) {
  if (row.repetition != 1 && (in_prompt || count > 0)) {
    logit = logit > 0 ? logit / row.repetition : logit * row.repetition;
  }
  if (count > 0) {
    logit -= row.frequency * count;
    logit -= row.presence;
  }
}

// Of 32 ids. What an id does not get is taken as 0, or as a factor of 1, which changes nothing.
void Penalise32(const SampleRow& row, uint32_t marked, const uint16_t* counts, float* logits) {
  const hn::CappedTag<float, 32> d;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::RebindToUnsigned<decltype(d)> du;
  const auto lanes = static_cast<int>(hn::Lanes(d));
  const auto zero = hn::Zero(d), one = hn::Set(d, 1.0f);
  for (int i = 0; i < 32; i += lanes) {
    const auto bit = hn::And(hn::Set(du, marked >> i), hn::Shl(hn::Set(du, 1u), hn::Iota(du, 0)));
    const auto in_prompt = hn::Ne(bit, hn::Zero(du));
    const auto count = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d16, counts + i)));
    const auto generated = hn::Gt(count, zero);
    const auto seen = hn::Or(hn::RebindMask(d, in_prompt), generated);
    const auto factor = hn::IfThenElse(seen, hn::Set(d, row.repetition), one);
    const auto logit = hn::LoadU(d, logits + i);
    const auto repeated =
        hn::IfThenElse(hn::Gt(logit, zero), hn::Div(logit, factor), hn::Mul(logit, factor));
    const auto frequent = hn::Sub(repeated, hn::Mul(hn::Set(d, row.frequency), count));
    hn::StoreU(
        hn::Sub(frequent, hn::IfThenElseZero(generated, hn::Set(d, row.presence))), d, logits + i);
  }
}

// Many ids are in neither part of the history: 32 at a time are passed over.
void PenaliseSeen(const SampleRow& row,
                  const uint16_t* generated,
                  const uint32_t* prompt,
                  int64_t vocab,
                  float* logits) {
  const bool by_prompt = row.repetition != 1;
  int64_t first = 0;
  for (; first + 32 <= vocab; first += 32) {
    const uint32_t marked = by_prompt ? prompt[first / 32] : 0;
    uint64_t counts[8];
    std::memcpy(counts, generated + first, sizeof(counts));
    uint64_t any = marked;
    for (const uint64_t four : counts) any |= four;
    if (any != 0) Penalise32(row, marked, generated + first, logits + first);
  }
  for (int64_t id = first; id < vocab; ++id) {
    const bool marked = by_prompt && (prompt[id / 32] >> id % 32 & 1);
    Penalise(row, marked, generated[id], logits[id]);
  }
}

}  // namespace asynctls::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {
namespace {

HWY_EXPORT(SampleLargest);
HWY_EXPORT(SampleWeigh);
HWY_EXPORT(PenaliseSeen);

// What the row's token is chosen from.
const float* AdjustedLogits(const SampleArgs& a, int64_t s, Scratch& scratch) {
  const SampleRow& row = a.rows[s];
  const float* raw = a.logits[s].data;
  if (!row.penalised() && row.edit_count == 0) return raw;
  float* logits = scratch.Get<float>(2, a.vocab);
  std::copy_n(raw, a.vocab, logits);
  if (row.penalised()) {
    HWY_DYNAMIC_DISPATCH(PenaliseSeen)
    (row, a.history.generated[row.lane].data, a.history.prompt[row.lane].data, a.vocab, logits);
  }
  for (int32_t e = row.edit_begin; e < row.edit_begin + row.edit_count; ++e) {
    const LogitEdit& edit = a.edits(row.lane, e);
    if (edit.id < a.vocab) logits[edit.id] += edit.add;
  }
  return logits;
}

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

// Inverse CDF over the kept ids (all of [0, n) where `ids` is null) in their order; -1 where none
// has weight.
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
  int32_t last = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (weight(i) == 0) continue;
    last = id(i);
    reached += weight(i);
    if (reached > target) break;
  }
  return last;
}

int32_t Greedy(const float* logits, int64_t vocab, float largest) {
  const float* at = std::find(logits, logits + vocab, largest);
  return at == logits + vocab ? 0 : static_cast<int32_t>(at - logits);
}

int32_t SampleToken(
    const float* logits, int64_t vocab, const SampleRow& row, float largest, Scratch& scratch) {
  if (row.temperature == 0) return Greedy(logits, vocab, largest);
  float* weights = scratch.Get<float>(0, vocab);
  const double total =
      HWY_DYNAMIC_DISPATCH(SampleWeigh)(logits, vocab, largest, 1.0f / row.temperature, weights);
  int32_t* ids = nullptr;
  int64_t kept = vocab;
  if (row.top_k > 0 || row.top_p < 1) {
    ids = scratch.Get<int32_t>(1, vocab);
    kept = Cut(logits, weights, row, vocab, total, ids);
    std::sort(ids, ids + kept);
  }
  const int32_t drawn = Draw(weights, row, ids, kept);
  return drawn >= 0 ? drawn : Greedy(logits, vocab, largest);
}

void CountToken(const TokenHistory& history, const SampleRow& row, int32_t token) {
  uint16_t& count = history.generated(row.lane, token);
  if (count < UINT16_MAX) ++count;
}

}  // namespace

void CpuOps::Sample(const SampleArgs& a) {
  state_->team.ParallelFor(a.rows.dim(0), [&](int64_t s, Scratch& scratch) {
    const SampleRow& row = a.rows[s];
    const float* raw = a.logits[s].data;
    const float* logits = AdjustedLogits(a, s, scratch);
    const float largest = HWY_DYNAMIC_DISPATCH(SampleLargest)(raw, a.vocab);
    const float adjusted =
        logits == raw ? largest : HWY_DYNAMIC_DISPATCH(SampleLargest)(logits, a.vocab);
    const int32_t token = SampleToken(logits, a.vocab, row, adjusted, scratch);
    const double total = HWY_DYNAMIC_DISPATCH(SampleWeigh)(raw, a.vocab, largest, 1.0f, nullptr);
    a.token[s] = token;
    a.log_prob[s] = static_cast<float>(raw[token] - largest - std::log(total));
    a.last_token[row.lane] = token;
    if (row.penalised()) CountToken(a.history, row, token);
  });
}

}  // namespace asynctls
#endif
