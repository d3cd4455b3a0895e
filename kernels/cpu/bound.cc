// SPDX-License-Identifier: Apache-2.0
// The paper's selector on the CPU, built so that it can be compared with, not tuned like the
// code's. fp32 sums in another order than the reference: near ties may fall differently.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/bound.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/exact-inl.h"
#include "kernels/cpu/keep_tokens-inl.h"
#include "kernels/cpu/state.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {

// One token's key into its block's range [2, D].
void AppendRange(const bf16* key, int64_t p, int64_t d_count, bf16* range) {
  for (int64_t d = 0; d < d_count; ++d) {
    bf16 &lo = range[d], &hi = range[d_count + d];
    if (p == 0 || ToFloat(key[d]) < ToFloat(lo)) lo = key[d];
    if (p == 0 || ToFloat(key[d]) > ToFloat(hi)) hi = key[d];
  }
}

// One token's chosen channels in 4 bits, asymmetric; step_zero [2].
void AppendCode(
    const bf16* key, const int32_t* channels, int64_t r, uint8_t* code, bf16* step_zero) {
  float lo = ToFloat(key[channels[0]]), hi = lo;
  for (int64_t c = 1; c < r; ++c) {
    lo = std::min(lo, ToFloat(key[channels[c]]));
    hi = std::max(hi, ToFloat(key[channels[c]]));
  }
  step_zero[0] = ToBf16((hi - lo) / 15.0f);
  step_zero[1] = ToBf16(lo);
  const float step = ToFloat(step_zero[0]), zero = ToFloat(step_zero[1]);
  for (int64_t c = 0; c < r; c += 2) {
    int nibble[2];
    for (int j = 0; j < 2; ++j) {
      const float x = std::nearbyint((ToFloat(key[channels[c + j]]) - zero) / step);
      nibble[j] = static_cast<int>(x >= 15.0f ? 15.0f : x >= 0.0f ? x : 0.0f);
    }
    code[c / 2] = static_cast<uint8_t>(nibble[0] | nibble[1] << 4);
  }
}

float BlockBound(const float* HWY_RESTRICT q, const bf16* HWY_RESTRICT range, int64_t d_count) {
  const hn::ScalableTag<float> df;
  const hn::RebindToUnsigned<decltype(df)> du;
  const hn::Rebind<uint16_t, decltype(df)> dh;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto* bits = reinterpret_cast<const uint16_t*>(range);
  const auto wide = [&](int64_t d) HWY_ATTR {
    return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(dh, bits + d))));
  };
  auto sum = hn::Zero(df);
  for (int64_t d = 0; d < d_count; d += lanes) {
    const auto x = hn::LoadU(df, q + d);
    sum = hn::Add(sum, hn::Max(hn::Mul(x, wide(d)), hn::Mul(x, wide(d_count + d))));
  }
  return hn::GetLane(hn::SumOfLanes(df, sum));
}

// The group's queries widened to q [R, D]; finite[h] says which take part. Returns how many do not.
int32_t WidenGroup(
    const View<const bf16, 3>& q_in, int64_t s, int64_t g, int64_t heads, float* q, bool* finite) {
  const int64_t d_count = q_in.dim(2);
  int32_t out = 0;
  for (int64_t h = 0; h < heads; ++h) {
    float* x = q + h * d_count;
    Widen(q_in.data + (s * q_in.dim(1) + g * heads + h) * d_count, d_count, x);
    finite[h] = std::all_of(x, x + d_count, [](float v) { return std::isfinite(v); });
    out += !finite[h];
  }
  return out;
}

void SelectBoundBlocks(const BoundSelectBlocksArgs& a, int64_t s, int64_t g, Scratch& scratch) {
  const DecodeRow& row = a.rows[s];
  const int64_t groups = a.index.range.dim(1), heads = a.q.dim(1) / groups, d_count = a.q.dim(2);
  const int64_t blocks = BlocksOf(row.length);
  const int64_t padded = (blocks + kTopKPad - 1) / kTopKPad * kTopKPad;
  float* q = scratch.Get<float>(0, heads * d_count);
  bool* finite = scratch.Get<bool>(1, heads);
  auto* keys = scratch.Get<uint32_t>(2, padded);
  a.out.nan_heads(s, g) = WidenGroup(a.q, s, g, heads, q, finite);
  for (int64_t b = 0; b < blocks; ++b) {
    const bf16* range = a.index.range[a.slot_table(row.lane, b)][g].data;
    float best = -std::numeric_limits<float>::infinity();
    for (int64_t h = 0; h < heads; ++h) {
      if (finite[h]) best = std::max(best, BlockBound(q + h * d_count, range, d_count));
    }
    keys[b] = BlockIsForced(b, blocks) ? kForcedKey : OrderedKey(best);
  }
  std::fill(keys + blocks, keys + padded, 0u);
  auto* chosen = scratch.Get<int32_t>(3, padded + kTopKPad);
  int32_t* out = a.out.blocks[s][g].data;
  int32_t& count = a.out.block_count(s, g);
  count = static_cast<int32_t>(TopK(
      keys, blocks, padded, row.max_blocks, scratch.Get<uint32_t>(4, padded + kTopKPad), chosen));
  std::copy(chosen, chosen + count, out);
  if (row.lag != DecodeRow::kExact) ExchangeLag(row, a.lag[row.lane][g].data, out, &count);
}

// logit[i] of the candidates for one head; candidates that are not there get -inf. q_r [r] is the
// head's query at the channels of the code.
void BoundLogits(
    const BoundSelectTokensArgs& a, int64_t s, int64_t g, const float* q_r, float* logit) {
  const DecodeRow& row = a.rows[s];
  const int64_t r = a.index.channels.dim(1);
  float q_sum = 0.0f;
  for (int64_t c = 0; c < r; ++c) q_sum += q_r[c];
  for (int64_t i = 0; i < a.out.block_count(s, g); ++i) {
    const int64_t block = a.out.blocks(s, g, i), slot = a.slot_table(row.lane, block);
    const int64_t positions = PositionsIn(block, row.length);
    const uint8_t* code = a.index.code[slot][g].data;
    const bf16* step_zero = a.index.step[slot][g].data;
    for (int64_t p = 0; p < kBlockPositions; ++p, code += r / 2, step_zero += 2) {
      float sum = 0.0f;
      for (int64_t c = 0; c < r / 2; ++c) {
        sum += q_r[2 * c] * static_cast<float>(code[c] & 15) +
               q_r[2 * c + 1] * static_cast<float>(code[c] >> 4);
      }
      const float x = (ToFloat(step_zero[0]) * sum + ToFloat(step_zero[1]) * q_sum) * a.scale;
      *logit++ = p < positions ? x : -std::numeric_limits<float>::infinity();
    }
  }
}

void SelectBoundTokens(const BoundSelectTokensArgs& a, int64_t s, int64_t g, Scratch& scratch) {
  const int64_t groups = a.index.range.dim(1), heads = a.q.dim(1) / groups, d_count = a.q.dim(2);
  const int64_t padded = a.out.block_count(s, g) * kBlockPositions, r = a.index.channels.dim(1);
  float* q = scratch.Get<float>(0, heads * d_count + r);
  bool* finite = scratch.Get<bool>(1, heads);
  float* logit = scratch.Get<float>(2, padded);
  float* score = scratch.Get<float>(3, padded);
  std::fill(score, score + padded, 0.0f);
  WidenGroup(a.q, s, g, heads, q, finite);
  float* q_r = q + heads * d_count;
  for (int64_t h = 0; h < heads; ++h) {
    if (!finite[h]) continue;
    for (int64_t c = 0; c < r; ++c) q_r[c] = q[h * d_count + a.index.channels(g, c)];
    BoundLogits(a, s, g, q_r, logit);
    float top = -std::numeric_limits<float>::infinity(), z = 0.0f;
    for (int64_t i = 0; i < padded; ++i) top = std::max(top, logit[i]);
    if (!std::isfinite(top)) continue;
    for (int64_t i = 0; i < padded; ++i) {
      logit[i] = std::exp(logit[i] - top);
      z += std::isnan(logit[i]) ? 0.0f : logit[i];
    }
    for (int64_t i = 0; i < padded; ++i) score[i] += logit[i] / z;
  }
  KeepTokensOf(a.rows[s], a.out, s, g, score, scratch);
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {
HWY_EXPORT(AppendRange);
HWY_EXPORT(AppendCode);
HWY_EXPORT(SelectBoundBlocks);
HWY_EXPORT(SelectBoundTokens);

void CpuOps::BoundAppend(const BoundAppendArgs& a) {
  const int64_t d_count = a.index.range.dim(3), r = a.index.channels.dim(1);
  // Heads in parallel: the tokens of a block must pass its range in their order.
  state_->team.ParallelFor(a.kv.rows.dim(1), [&](int64_t g, Scratch&) {
    for (int64_t t = 0; t < a.lanes.dim(0); ++t) {
      const int64_t position = a.positions[t], p = position % kBlockPositions;
      const int64_t slot = a.kv.slot_table(a.lanes[t], position / kBlockPositions);
      const bf16* key = &a.kv.rows(slot, g, p, 0);
      HWY_DYNAMIC_DISPATCH(AppendRange)(key, p, d_count, a.index.range[slot][g].data);
      HWY_DYNAMIC_DISPATCH(AppendCode)
      (key,
       a.index.channels[g].data,
       r,
       &a.index.code(slot, g, p, 0),
       &a.index.step(slot, g, p, 0));
    }
  });
}

void CpuOps::BoundSelectBlocks(const BoundSelectBlocksArgs& a) {
  const int64_t groups = a.index.range.dim(1);
  assert(a.q.dim(2) % 16 == 0);
  state_->team.ParallelFor(a.rows.dim(0) * groups, [&](int64_t i, Scratch& scratch) {
    const int64_t s = i / groups, g = i % groups;
    if (a.rows[s].length == 0) {
      a.out.block_count(s, g) = a.out.nan_heads(s, g) = 0;
      return;
    }
    HWY_DYNAMIC_DISPATCH(SelectBoundBlocks)(a, s, g, scratch);
  });
}

void CpuOps::BoundSelectTokens(const BoundSelectTokensArgs& a) {
  const int64_t groups = a.index.range.dim(1);
  state_->team.ParallelFor(a.rows.dim(0) * groups, [&](int64_t i, Scratch& scratch) {
    const int64_t s = i / groups, g = i % groups;
    if (a.rows[s].length == 0 || a.out.block_count(s, g) == 0) {
      a.out.token_count(s, g) = a.out.touched(s, g) = 0;
      return;
    }
    HWY_DYNAMIC_DISPATCH(SelectBoundTokens)(a, s, g, scratch);
  });
}

}  // namespace asynctls
#endif  // HWY_ONCE
