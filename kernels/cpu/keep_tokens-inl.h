// SPDX-License-Identifier: Apache-2.0
// The last step of both token filters: from scores of the candidates to the row's selection. The
// vector form of KeepTokens in kernels/ref/selection.h, once per instruction set.
#if defined(ASYNCTLS_KEEP_TOKENS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASYNCTLS_KEEP_TOKENS_INL_H_
#undef ASYNCTLS_KEEP_TOKENS_INL_H_
#else
#define ASYNCTLS_KEEP_TOKENS_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/cpu/state.h"
#include "kernels/cpu/top_k-inl.h"
#include "kernels/ref/selection.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {

// Turns the scores of a block's positions into rank keys; positions not below `length` get 0.
HWY_INLINE void RankBlock(int64_t block, int64_t length, const float* score, uint32_t* key) {
  const hn::ScalableTag<float> df;
  const hn::RebindToUnsigned<decltype(df)> du;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto sign = hn::Set(du, 0x80000000u);
  for (int64_t p = 0; p < kBlockPositions; p += lanes) {
    const auto x = hn::Add(hn::LoadU(df, score + p), hn::Zero(df));
    const auto bits = hn::BitCast(du, x);
    const auto negative = hn::RebindMask(du, hn::Lt(x, hn::Zero(df)));
    const auto key_of = hn::IfThenElse(negative, hn::Not(bits), hn::Or(bits, sign));
    hn::StoreU(hn::IfThenZeroElse(hn::RebindMask(du, hn::IsNaN(x)), key_of), du, key + p);
  }
  const int64_t first = block * kBlockPositions;
  if (block == 0) std::fill(key, key + std::min<int64_t>(kSinkPositions, length), kForcedKey);
  const int64_t window = std::max<int64_t>(length - kWindowPositions - first, 0);
  const int64_t positions = PositionsIn(block, length);
  for (int64_t p = window; p < positions; ++p) key[p] = kForcedKey;
  for (int64_t p = positions; p < kBlockPositions; ++p) key[p] = 0;
}

// The cut by mass, of candidates with ranks by their column. Writes the columns kept.
HWY_INLINE int64_t KeepByMass(const DecodeRow& row,
                              const uint32_t* keys,
                              const float* score,
                              int64_t count,
                              uint64_t* ranks,
                              int32_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    ranks[i] = static_cast<uint64_t>(keys[i]) << 31 | static_cast<uint64_t>(0x7fffffff - i);
  }
  int64_t kept = std::clamp<int64_t>(row.max_tokens, 0, count);
  std::partial_sort(ranks, ranks + kept, ranks + count, std::greater<>());
  kept = CutByMass(ranks, kept, row.top_p, score, count);
  for (int64_t i = 0; i < kept; ++i) out[i] = RankedIndex(ranks[i]);
  std::sort(out, out + kept);
  return kept;
}

// Writes tokens, token_count and touched of (s, g). score [64 * block_count] is in order of
// position. Uses places 4 to 7 of `scratch`.
HWY_INLINE void KeepTokensOf(const DecodeRow& row,
                             const Selection& out,
                             int64_t s,
                             int64_t g,
                             const float* score,
                             Scratch& scratch) {
  const int32_t* blocks = out.blocks[s][g].data;
  const int64_t block_count = out.block_count(s, g), padded = block_count * kBlockPositions;
  // Only the lane's last block can be short, and it is last here too.
  const int64_t count = padded - kBlockPositions + PositionsIn(blocks[block_count - 1], row.length);
  uint32_t* keys = scratch.Get<uint32_t>(4, padded);
  int32_t* chosen = scratch.Get<int32_t>(5, padded + kTopKPad);
  for (int64_t i = 0; i < block_count; ++i) {
    RankBlock(blocks[i], row.length, score + i * kBlockPositions, keys + i * kBlockPositions);
  }
  const int64_t kept =
      row.top_p < 1.0f
          ? KeepByMass(row, keys, score, count, scratch.Get<uint64_t>(6, count), chosen)
          : TopK(keys,
                 count,
                 padded,
                 row.max_tokens,
                 scratch.Get<uint32_t>(7, padded + kTopKPad),
                 chosen);
  int32_t* tokens = out.tokens[s][g].data;
  for (int64_t i = 0; i < kept; ++i) {
    const int32_t column = chosen[i];
    tokens[i] = blocks[column / kBlockPositions] * kBlockPositions + column % kBlockPositions;
  }
  out.token_count(s, g) = static_cast<int32_t>(kept);
  out.touched(s, g) = BlocksTouched(tokens, static_cast<int32_t>(kept));
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#endif  // ASYNCTLS_KEEP_TOKENS_INL_H_
