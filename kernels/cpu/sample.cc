// SPDX-License-Identifier: Apache-2.0
// Sampling, one row per thread. The weights of all ids come from vectors; ranking is only done as
// far as top_k and top_p ask for it. Rows with penalties or edits work on a copy of their logits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

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

// The first of [i, n) above `threshold`, n if none is.
int64_t NextAbove(const float* logits, int64_t i, int64_t n, float threshold) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto border = hn::Set(d, threshold);
  for (; i + lanes <= n; i += lanes) {
    const auto above = hn::Gt(hn::LoadU(d, logits + i), border);
    if (!hn::AllFalse(d, above)) return i + static_cast<int64_t>(hn::FindFirstTrue(d, above));
  }
  while (i < n && !(logits[i] > threshold)) ++i;
  return i;
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
HWY_EXPORT(NextAbove);

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

// The best k ids, best first, ties to the lower id; NaN and -inf, which have no probability, may be
// missing. `ids` has room for 2 k. One pass, which stops only where an id beats the k-th so far.
int64_t BestIds(const float* logits, int64_t n, int64_t k, int32_t* ids) {
  const auto better = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  float last = -std::numeric_limits<float>::infinity();
  int64_t count = 0;
  for (int64_t i = 0; (i = HWY_DYNAMIC_DISPATCH(NextAbove)(logits, i, n, last)) < n; ++i) {
    ids[count++] = static_cast<int32_t>(i);
    if (count < 2 * k) continue;
    std::nth_element(ids, ids + k - 1, ids + count, better);
    count = k;
    last = logits[ids[k - 1]];
  }
  std::sort(ids, ids + count, better);
  return std::min(count, k);
}

// The same for any k, into `ids` [n].
int64_t TopK(const float* logits, int64_t n, int64_t k, int32_t* ids) {
  if (2 * k <= n) return BestIds(logits, n, k, ids);
  int64_t count = 0;
  for (int32_t id = 0; id < n; ++id) {
    if (!std::isnan(logits[id])) ids[count++] = id;
  }
  std::sort(ids, ids + count, [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  return std::min(count, k);
}

// How many of the ids, in their order, it takes until their weights reach `needed`; `count` + 1
// where all do not.
int64_t Reach(const float* weights, const int32_t* ids, int64_t count, double needed) {
  double reached = 0;
  for (int64_t i = 0; i < count; ++i) {
    reached += weights[ids[i]];
    if (reached >= needed) return i + 1;
  }
  return count + 1;
}

// The smallest prefix of the ranked ids that reaches `needed`: ranks ever more of them.
int64_t Nucleus(const float* logits, const float* weights, int64_t n, double needed, int32_t* ids) {
  for (int64_t k = 1024;; k *= 8) {
    const int64_t ranked = TopK(logits, n, std::min(k, n), ids);
    const int64_t count = Reach(weights, ids, ranked, needed);
    if (count <= ranked || k >= n) return std::min(count, ranked);
  }
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

// top_k, then top_p of what it left; the weights of the ids kept are written, nobody else's.
int64_t CutToTopK(const float* logits,
                  int64_t n,
                  const SampleRow& row,
                  float largest,
                  float* weights,
                  int32_t* ids) {
  const int64_t kept = TopK(logits, n, row.top_k, ids);
  double mass = 0;
  for (int64_t i = 0; i < kept; ++i) {
    const float weight = std::exp((logits[ids[i]] - largest) / row.temperature);
    mass += weights[ids[i]] = std::isnan(weight) ? 0.0f : weight;
  }
  if (row.top_p >= 1) return kept;
  return std::min(kept, Reach(weights, ids, kept, row.top_p * mass));
}

int32_t SampleToken(
    const float* logits, int64_t vocab, const SampleRow& row, float largest, Scratch& scratch) {
  if (row.temperature == 0) return Greedy(logits, vocab, largest);
  float* weights = scratch.Get<float>(0, vocab);
  int32_t* ids = nullptr;  // all
  int64_t kept = vocab;
  if (row.top_k > 0 && row.top_k < vocab) {
    ids = scratch.Get<int32_t>(1, vocab);
    kept = CutToTopK(logits, vocab, row, largest, weights, ids);
  } else {
    const double mass =
        HWY_DYNAMIC_DISPATCH(SampleWeigh)(logits, vocab, largest, 1.0f / row.temperature, weights);
    if (row.top_p < 1) {
      ids = scratch.Get<int32_t>(1, vocab);
      kept = Nucleus(logits, weights, vocab, row.top_p * mass, ids);
    }
  }
  if (ids != nullptr) std::sort(ids, ids + kept);
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
    if (row.lane < 0) return;
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
