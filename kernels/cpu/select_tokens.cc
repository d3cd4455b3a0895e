// SPDX-License-Identifier: Apache-2.0
// Level 2 on the CPU: one work item per (row, KV head). Bit-identical to
// kernels/ref/select_tokens.cc.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/select_tokens.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/code_dot-inl.h"
#include "kernels/cpu/exact-inl.h"
#include "kernels/cpu/keep_tokens-inl.h"
#include "kernels/cpu/state.h"
#include "kernels/ref/selection.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {

// Logits of one block for a quad of heads, to logit[h] [64]; positions that are not there get -inf.
void BlockLogits(const uint32_t* first,
                 const uint32_t* second,
                 const QueryQuad& quad,
                 int64_t positions,
                 float* const logit[kQuad]) {
  for (int h = 0; h < kQuad; ++h) {
    HWY_ALIGN int32_t sum[kBlockPositions];
    Products(first, second, quad.code8[h], sum);
    for (int64_t p = 0; p < kBlockPositions; ++p) {
      logit[h][p] = p < positions ? static_cast<float>(2 * sum[p] - quad.bias[1][h]) * quad.scale[h]
                                  : kLowest;
    }
  }
}

float MaxOf(const float* x, int64_t count) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  auto a = hn::Set(df, kLowest), b = a;
  for (int64_t i = 0; i < count; i += 2 * lanes) {
    a = hn::Max(a, hn::LoadU(df, x + i));
    b = hn::Max(b, hn::LoadU(df, x + i + lanes));
  }
  return hn::GetLane(hn::MaxOfLanes(df, hn::Max(a, b)));
}

// score[i] = chain over the heads of fma(weight, inverse, score). Heads left out have inverse 0 and
// weights of 0, which leave a score as it is.
void SumHeads(const float* weight,
              const float* inverse,
              int64_t heads,
              int64_t count,
              float* HWY_RESTRICT score) {
#if HWY_NATIVE_FMA && HWY_TARGET != HWY_SCALAR
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  for (int64_t i = 0; i < count; i += lanes) {
    auto sum = hn::Zero(df);
    for (int64_t h = 0; h < heads; ++h) {
      sum = hn::MulAdd(hn::LoadU(df, weight + h * count + i), hn::Set(df, inverse[h]), sum);
    }
    hn::StoreU(sum, df, score + i);
  }
#else
  for (int64_t i = 0; i < count; ++i) {
    score[i] = 0.0f;
    for (int64_t h = 0; h < heads; ++h) {
      score[i] = std::fma(weight[h * count + i], inverse[h], score[i]);
    }
  }
#endif
}

// Logits [quads * 4][padded] of all candidates of (s, g); block i of the selection at column 64 i.
void ScoreCandidates(const SelectTokensArgs& a,
                     int64_t s,
                     int64_t g,
                     int64_t heads,
                     QueryQuad* quads,
                     float* logit) {
  const DecodeRow& row = a.rows[s];
  const int64_t groups = a.out.block_count.dim(1);
  const int64_t count = a.out.block_count(s, g), padded = count * kBlockPositions;
  const int32_t* blocks = a.out.blocks[s][g].data;
  const int32_t* slots = a.slot_table.data + row.lane * a.slot_table.dim(1);
  for (int64_t h = 0; h < heads; h += kQuad) {
    FillQuad(a.turned.code8[s][g * heads + h].data,
             a.turned.scale[s].data + g * heads + h,
             std::min<int64_t>(kQuad, heads - h),
             quads + h / kQuad);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t ahead = (slots[blocks[std::min(i + 3, count - 1)]] * groups + g);
    for (int64_t j = 0; j < kPartWords; j += 16) {
      __builtin_prefetch(a.codes.second.data + ahead * kPartWords + j);
    }
    const int64_t at = slots[blocks[i]] * groups + g,
                  positions = PositionsIn(blocks[i], row.length);
    const uint32_t* first = a.codes.first.data + at * kPartWords;
    const uint32_t* second = a.codes.second.data + at * kPartWords;
    for (int64_t h = 0; h < heads; h += kQuad) {
      float* out[kQuad];
      for (int j = 0; j < kQuad; ++j) out[j] = logit + (h + j) * padded + i * kBlockPositions;
      if (HasVnni() && positions == kBlockPositions) {
        BlockLogitsVnni(first, second, quads[h / kQuad], out);
      } else {
        BlockLogits(first, second, quads[h / kQuad], positions, out);
      }
    }
  }
}

void SelectTokensOf(const SelectTokensArgs& a, int64_t s, int64_t g, Scratch& scratch) {
  const DecodeRow& row = a.rows[s];
  const int64_t groups = a.out.block_count.dim(1), heads = a.turned.code8.dim(1) / groups;
  const int64_t quad_count = (heads + kQuad - 1) / kQuad;
  const int64_t blocks = a.out.block_count(s, g), padded = blocks * kBlockPositions;
  float* logit = scratch.Get<float>(0, quad_count * kQuad * padded);
  float* inverse = scratch.Get<float>(1, heads);
  ScoreCandidates(a, s, g, heads, scratch.Get<QueryQuad>(2, quad_count), logit);
  for (int64_t h = 0; h < heads; ++h) {
    float* x = logit + h * padded;
    if (std::isnan(a.turned.scale(s, g * heads + h))) {
      std::fill(x, x + padded, 0.0f);
      inverse[h] = 0.0f;
      continue;
    }
    inverse[h] = 1.0f / static_cast<float>(FixedExp2InPlace(x, padded, MaxOf(x, padded)));
  }
  float* score = scratch.Get<float>(3, padded);
  SumHeads(logit, inverse, heads, padded, score);
  KeepTokensOf(row, a.out, s, g, score, scratch);
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {
HWY_EXPORT(SelectTokensOf);

void CpuOps::SelectTokens(const SelectTokensArgs& a) {
  const int64_t groups = a.out.block_count.dim(1);
  assert(a.turned.code8.dim(2) == kCodeDirections);
  state_->team.ParallelFor(a.rows.dim(0) * groups, [&](int64_t i, Scratch& scratch) {
    const int64_t s = i / groups, g = i % groups;
    if (a.rows[s].length == 0 || a.out.block_count(s, g) == 0) {
      a.out.token_count(s, g) = a.out.touched(s, g) = 0;
      return;
    }
    HWY_DYNAMIC_DISPATCH(SelectTokensOf)(a, s, g, scratch);
  });
}

}  // namespace asynctls
#endif  // HWY_ONCE
