// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/encode_keys.h"
#include "kernels/cpu/state.h"
#include "kernels/ref/exact.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/append_kv.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/highway.h>

#include "kernels/cpu/bf16-inl.h"
#include "kernels/cpu/exact-inl.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls::HWY_NAMESPACE {

template <class D>
HWY_INLINE hn::Vec<D> Normed(D d, const bf16* x, const bf16* weight, float inverse) {
  const auto scaled = RoundToBf16(d, hn::Mul(LoadBf16(d, x), hn::Set(d, inverse)));
  return RoundToBf16(d, hn::Mul(scaled, LoadBf16(d, weight)));
}

// out = rope(norm(x)) of the pairs (i, i + half), i in [i, half) as far as whole vectors go;
// returns where it stopped.
template <class D>
int64_t TurnSpan(D d,
                 int64_t i,
                 int64_t half,
                 const bf16* x,
                 const bf16* weight,
                 float inverse,
                 const float* cos_sin,
                 bf16* out) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (; i + lanes <= half; i += lanes) {
    const auto low = Normed(d, x + i, weight + i, inverse);
    const auto high = Normed(d, x + half + i, weight + half + i, inverse);
    const auto cosine = hn::LoadU(d, cos_sin + i);
    const auto sine = hn::LoadU(d, cos_sin + half + i);
    StoreBf16(d, hn::Sub(hn::Mul(low, cosine), hn::Mul(high, sine)), out + i);
    StoreBf16(d, hn::Add(hn::Mul(high, cosine), hn::Mul(low, sine)), out + half + i);
  }
  return i;
}

void NormAndTurn(
    const bf16* x, const bf16* weight, int64_t dim, float eps, const float* cos_sin, bf16* out) {
  const float inverse = 1.0f / std::sqrt(SumOfSquares(x, dim) / static_cast<float>(dim) + eps);
  const int64_t half = dim / 2;
  const int64_t rest =
      TurnSpan(hn::ScalableTag<float>(), 0, half, x, weight, inverse, cos_sin, out);
  TurnSpan(OneLane(), rest, half, x, weight, inverse, cos_sin, out);
}

// The queries of row t, as row t - turn_begin of `turned`.
void TurnQueries(const AppendKvArgs& a, int64_t t, Scratch& scratch) {
  const int64_t s = t - a.turn_begin, heads = a.q_out.dim(1), group = heads / a.kv.rows.dim(1);
  const int64_t dim = a.q_out.dim(2);
  float* x = scratch.Get<float>(3, dim + kCodeDirections);
  for (int64_t h = 0; h < heads; ++h) {
    int8_t* code8 = a.turned.code8[s][h].data;
    a.turned.scale(s, h) =
        TurnHead(&a.q_out(t, h, 0), a.code, h / group, a.scale, x, x + dim, code8);
  }
}

}  // namespace asynctls::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {
namespace {

HWY_EXPORT(NormAndTurn);
HWY_EXPORT(TurnQueries);

void AppendCode(
    const AppendKvArgs& a, const bf16* key, int64_t slot, int64_t g, int64_t p, Scratch& scratch) {
  const int64_t dim = a.code.encode.dim(1), r = a.code.encode.dim(2);
  float* wide = scratch.Get<float>(0, dim);
  uint8_t* code = scratch.Get<uint8_t>(2, r);
  std::transform(key, key + dim, wide, ToFloat);
  EncodeKeyCpu(wide, a.code, static_cast<int>(g), scratch.Get<float>(1, r), code);
  StoreCode(code, a.codes, slot, g, p);
}

}  // namespace

void CpuOps::AppendKv(const AppendKvArgs& a) {
  const int64_t dim = a.q_norm.dim(0);
  const int64_t q_heads = a.q_out.dim(1);
  const int64_t kv_heads = a.kv.rows.dim(1);
  const auto turn = HWY_DYNAMIC_DISPATCH(NormAndTurn);
  const auto turn_queries = HWY_DYNAMIC_DISPATCH(TurnQueries);
  state_->team.ParallelFor(a.qkv.dim(0), 4, [&](int64_t t, Scratch& scratch) {
    if (a.lanes[t] < 0) return;
    const bf16* row = a.qkv[t].data;
    const float* cos_sin = a.cos_sin[t].data;
    for (int64_t h = 0; h < q_heads; ++h) {
      turn(row + h * dim, a.q_norm.data, dim, a.eps, cos_sin, &a.q_out(t, h, 0));
    }
    if (t >= a.turn_begin && t - a.turn_begin < a.turned.scale.dim(0)) turn_queries(a, t, scratch);
    const int64_t slot = a.kv.slot_table(a.lanes[t], a.positions[t] / kBlockPositions);
    const int64_t p = a.positions[t] % kBlockPositions;
    for (int64_t g = 0; g < kv_heads; ++g) {
      bf16* key = &a.kv.rows(slot, g, p, 0);
      turn(row + (q_heads + g) * dim, a.k_norm.data, dim, a.eps, cos_sin, key);
      std::memcpy(
          key + dim, row + (q_heads + kv_heads + g) * dim, static_cast<size_t>(dim) * sizeof(bf16));
      if (!a.code.encode.empty()) AppendCode(a, key, slot, g, p, scratch);
    }
  });
}

}  // namespace asynctls
#endif
