// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/attend_range.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attend_range.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include "kernels/cpu/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls::HWY_NAMESPACE {

#if HWY_TARGET != HWY_SCALAR
// The sum of v's blocks of four lanes.
template <class D>
HWY_INLINE hn::Vec<hn::CappedTag<float, 4>> SumBlocks([[maybe_unused]] D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) <= 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return SumBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

// The sums of the lanes of four vectors, in the lowest four lanes.
template <class D>
HWY_INLINE hn::Vec<hn::CappedTag<float, 4>> SumFour(D d, const hn::Vec<D> (&v)[4]) {
  const hn::Repartition<double, D> pair;
  const auto low = hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1]));
  const auto high = hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3]));
  const auto even = hn::InterleaveLower(pair, hn::BitCast(pair, low), hn::BitCast(pair, high));
  const auto odd = hn::InterleaveUpper(pair, hn::BitCast(pair, low), hn::BitCast(pair, high));
  return SumBlocks(d, hn::Add(hn::BitCast(d, even), hn::BitCast(d, odd)));
}
#endif

// scores[h][p] = q[h] . key p, of kHeads heads and `count` positions. Row stride of scores:
// kBlockPositions; rows of keys are `stride` apart. While it reads row p of this block, row p of
// the block at `next` is on its way (slots are scattered, so the processor cannot guess it).
template <int kHeads>
void Scores(const float* HWY_RESTRICT q,
            const bf16* HWY_RESTRICT keys,
            Ahead& ahead,
            int64_t dim,
            int64_t stride,
            int64_t count,
            float* HWY_RESTRICT scores) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  HWY_ALIGN float sums[kBlockPositions * kHeads];
  for (int64_t p = 0; p < count; ++p) {
    ahead.Fetch(4);
    const bf16* key = keys + p * stride;
    hn::Vec<decltype(d)> sum[kHeads];
    for (auto& v : sum) v = hn::Zero(d);
    int64_t i = 0;
    for (; i + lanes <= dim; i += lanes) {
      const auto k = LoadBf16(d, key + i);
      for (int h = 0; h < kHeads; ++h) {
        sum[h] = hn::MulAdd(hn::LoadU(d, q + h * dim + i), k, sum[h]);
      }
    }
#if HWY_TARGET != HWY_SCALAR
    if constexpr (kHeads == 4) {
      hn::Store(SumFour(d, sum), hn::CappedTag<float, 4>(), sums + 4 * p);
    } else  // NOLINT
#endif
    {
      for (int h = 0; h < kHeads; ++h) {
        sums[kHeads * p + h] = hn::GetLane(hn::SumOfLanes(d, sum[h]));
      }
    }
    for (; i < dim; ++i) {
      for (int h = 0; h < kHeads; ++h) sums[kHeads * p + h] += q[h * dim + i] * ToFloat(key[i]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int64_t p = 0; p < count; ++p) scores[h * kBlockPositions + p] = sums[kHeads * p + h];
  }
}

// out[h][i..] += weights[h][p] * value p, kVectors vectors of each head from column i on.
template <int kHeads, int kVectors, class D>
HWY_INLINE void AddColumns(D d,
                           Ahead& ahead,
                           const float* HWY_RESTRICT weights,
                           const bf16* HWY_RESTRICT values,
                           int64_t stride,
                           int64_t count,
                           int64_t dim,
                           float* HWY_RESTRICT out) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<D> sum[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) sum[h][v] = hn::LoadU(d, out + h * dim + v * lanes);
  }
  for (int64_t p = 0; p < count; ++p) {
    ahead.Fetch(2);
    for (int v = 0; v < kVectors; ++v) {
      const auto value = LoadBf16(d, values + p * stride + v * lanes);
      for (int h = 0; h < kHeads; ++h) {
        sum[h][v] = hn::MulAdd(hn::Set(d, weights[h * kBlockPositions + p]), value, sum[h][v]);
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[h][v], d, out + h * dim + v * lanes);
  }
}

template <int kHeads>
void AddValues(Ahead& ahead,
               const float* weights,
               const bf16* values,
               int64_t dim,
               int64_t stride,
               int64_t count,
               float* out) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + 4 * lanes <= dim; i += 4 * lanes) {
    AddColumns<kHeads, 4>(d, ahead, weights, values + i, stride, count, dim, out + i);
  }
  for (; i + lanes <= dim; i += lanes) {
    AddColumns<kHeads, 1>(d, ahead, weights, values + i, stride, count, dim, out + i);
  }
  for (; i < dim; ++i) {
    AddColumns<kHeads, 1>(OneLane(), ahead, weights, values + i, stride, count, dim, out + i);
  }
}

// Turns one head's scores of a block (all kBlockPositions of them; -inf where there is none) into
// weights and brings its part up to date, but for the values of this block.
void Soften(float* HWY_RESTRICT scores,
            float scale,
            int64_t dim,
            float* HWY_RESTRICT values,
            float* largest,
            float* sum) {
  const hn::CappedTag<float, kBlockPositions> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto factor = hn::Set(d, scale);
  auto top = hn::Set(d, *largest);
  for (int64_t p = 0; p < kBlockPositions; p += lanes) {
    const auto logit = hn::Mul(hn::Load(d, scores + p), factor);
    hn::Store(logit, d, scores + p);
    top = hn::Max(top, logit);
  }
  const float before = *largest;
  *largest = hn::GetLane(hn::MaxOfLanes(d, top));
  auto total = hn::Zero(d);
  for (int64_t p = 0; p < kBlockPositions; p += lanes) {
    const auto weight = hn::Exp(d, hn::Sub(hn::Load(d, scores + p), hn::Set(d, *largest)));
    hn::Store(weight, d, scores + p);
    total = hn::Add(total, weight);
  }
  if (*largest != before) {
    const float change = std::exp(before - *largest);
    *sum *= change;
    for (int64_t i = 0; i < dim; ++i) values[i] *= change;
  }
  *sum += hn::GetLane(hn::SumOfLanes(d, total));
}

// One block's `count` positions, kHeads heads of the group at a time.
template <int kHeads>
void AttendBlock(const float* q,
                 const bf16* rows,
                 Ahead& ahead,
                 int64_t count,
                 float scale,
                 int64_t dim,
                 float* scores,
                 float* values,
                 float* largest,
                 float* sum) {
  if (count < kBlockPositions) {
    std::fill_n(scores, kHeads * kBlockPositions, -std::numeric_limits<float>::infinity());
  }
  Scores<kHeads>(q, rows, ahead, dim, 2 * dim, count, scores);
  for (int h = 0; h < kHeads; ++h) {
    Soften(scores + h * kBlockPositions, scale, dim, values + h * dim, largest + h, sum + h);
  }
  AddValues<kHeads>(ahead, scores, rows + dim, dim, 2 * dim, count, values);
}

// One block of one KV head, all heads of its group. `q` [group, dim] widened.
void AttendGroup(const AttendHeads& a,
                 const float* q,
                 const bf16* rows,
                 Ahead& ahead,
                 int64_t count,
                 float* part,
                 float* scores) {
  const int64_t dim = a.dim();
  float* largest = part + a.group * dim;
  float* sum = largest + a.group;
  for (int64_t h = 0; h < a.group; h += 4) {
    const int64_t heads = std::min<int64_t>(4, a.group - h);
    const auto block = heads == 4   ? AttendBlock<4>
                       : heads == 3 ? AttendBlock<3>
                       : heads == 2 ? AttendBlock<2>
                                    : AttendBlock<1>;
    block(q + h * dim,
          rows,
          ahead,
          count,
          a.scale,
          dim,
          scores,
          part + h * dim,
          largest + h,
          sum + h);
  }
}

// `q` [heads, group, dim] widened; `scores` is scratch of 4 x kBlockPositions.
void AttendBlocks(const AttendHeads& a,
                  const float* q,
                  int64_t begin,
                  int64_t end,
                  float* parts,
                  int64_t stride,
                  float* scores) {
  const int64_t head_size = a.group * a.dim();
  for (int64_t head = 0; head < a.heads; ++head) {
    float* part = parts + head * stride;
    std::fill_n(part, head_size, 0.0f);
    std::fill_n(part + head_size, a.group, -std::numeric_limits<float>::infinity());
    std::fill_n(part + head_size + a.group, a.group, 0.0f);
  }
  AttendPlace at{.head = 0, .p = begin};
  for (bool more = true; more;) {
    AttendPlace next = at;
    more = next.Advance(a, kBlockPositions, end);
    Ahead ahead = more ? FetchAhead(a, next, kBlockPositions) : Ahead();
    AttendGroup(a,
                q + at.head * head_size,
                at.Rows(a),
                ahead,
                std::min<int64_t>(kBlockPositions, end - at.p),
                parts + at.head * stride,
                scores);
    at = next;
  }
}

}  // namespace asynctls::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {

HWY_EXPORT(AttendBlocks);

void AttendRange(const AttendHeads& a,
                 int64_t begin,
                 int64_t end,
                 float* parts,
                 int64_t stride,
                 Scratch& scratch) {
  if (amx::CanAttend(a.group, a.dim())) {
    amx::AttendRange(a, begin, end, parts, stride, scratch);
  } else {
    AttendRangeFp32(a, begin, end, parts, stride, scratch);
  }
}

void AttendRangeFp32(const AttendHeads& a,
                     int64_t begin,
                     int64_t end,
                     float* parts,
                     int64_t stride,
                     Scratch& scratch) {
  const int64_t size = a.heads * a.group * a.dim();
  float* q = scratch.Get<float>(0, size);
  std::transform(a.q, a.q + size, q, ToFloat);
  float* scores = scratch.Get<float>(1, 4 * kBlockPositions);
  HWY_DYNAMIC_DISPATCH(AttendBlocks)(a, q, begin, end, parts, stride, scores);
}

void MergeParts(float* parts, int64_t count, int64_t group, int64_t dim, bf16* out) {
  const int64_t size = AttendPartSize(group, dim);
  if (count == 0) {
    std::fill_n(out, group * dim, bf16{0});
    return;
  }
  for (int64_t h = 0; h < group; ++h) {
    const float* largest = parts + group * dim + h;
    const float* sum = largest + group;
    float top = largest[0];
    for (int64_t c = 1; c < count; ++c) top = std::max(top, largest[c * size]);
    float* values = parts + h * dim;
    float total = 0;
    for (int64_t c = 0; c < count; ++c) {
      const float factor = std::exp(largest[c * size] - top);
      const float* more = values + c * size;
      total += sum[c * size] * factor;
      for (int64_t i = 0; i < dim; ++i) values[i] = (c == 0 ? 0.0f : values[i]) + more[i] * factor;
    }
    for (int64_t i = 0; i < dim; ++i) out[h * dim + i] = ToBf16(values[i] / total);
  }
}

}  // namespace asynctls
#endif
