// SPDX-License-Identifier: Apache-2.0
// What every selector does the same way: keeping the best by rank, the exchange with the previous
// step, counting what the selected tokens touch. Host code, shared by the reference and the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/ops.h"
#include "kernels/ref/exact.h"

namespace asynctls {

inline int64_t BlocksOf(int64_t length) { return (length + kBlockPositions - 1) / kBlockPositions; }
// The number of positions of `block` that lie below `length`.
inline int64_t PositionsIn(int64_t block, int64_t length) {
  return std::min<int64_t>(kBlockPositions, length - block * kBlockPositions);
}

// Writes the indices of the `keep` best of `ranks` to `out`, increasing; returns how many.
// Reorders `ranks`.
inline int32_t KeepBest(uint64_t* ranks, int64_t count, int64_t keep, int32_t* out) {
  keep = std::clamp<int64_t>(keep, 0, count);
  if (keep < count) std::nth_element(ranks, ranks + keep, ranks + count, std::greater<>());
  for (int64_t i = 0; i < keep; ++i) out[i] = RankedIndex(ranks[i]);
  std::sort(out, out + keep);
  return static_cast<int32_t>(keep);
}

// Adds `block` to the increasing list unless it is there.
inline void InsertBlock(int32_t block, int32_t* blocks, int32_t* count) {
  int32_t* end = blocks + *count;
  int32_t* at = std::lower_bound(blocks, end, block);
  if (at != end && *at == block) return;
  std::copy_backward(at, end, end + 1);
  *at = block;
  ++*count;
}

// The exchange of SelectBlocks with the previous step. On entry `blocks` is what the row itself
// chose. `kept` [M + 1] is lag[lane][g]. Requires: the row is lagged.
inline void ExchangeLag(const DecodeRow& row, int32_t* kept, int32_t* blocks, int32_t* count) {
  if (row.lag == DecodeRow::kLaggedFirst) {
    kept[0] = *count;
    std::copy(blocks, blocks + *count, kept + 1);
    return;
  }
  std::swap_ranges(blocks, blocks + std::max(*count, kept[0]), kept + 1);
  std::swap(*count, kept[0]);
  const auto now = static_cast<int32_t>(BlocksOf(row.length));
  while (*count > 0 && blocks[*count - 1] >= now) --*count;
  InsertBlock(0, blocks, count);
  if (now >= 2) InsertBlock(now - 2, blocks, count);
  InsertBlock(now - 1, blocks, count);
}

// The number of distinct blocks among increasing positions.
inline int32_t BlocksTouched(const int32_t* tokens, int32_t count) {
  int32_t touched = 0;
  for (int32_t i = 0; i < count; ++i) {
    touched += i == 0 || tokens[i] / kBlockPositions != tokens[i - 1] / kBlockPositions;
  }
  return touched;
}

// How many of the `kept` best ranks (decreasing) the cut by mass leaves. `score` is of all `count`
// candidates, by rank index.
inline int64_t CutByMass(
    const uint64_t* ranks, int64_t kept, float top_p, const float* score, int64_t count) {
  uint64_t total = 0, sum = 0;
  for (int64_t i = 0; i < count; ++i) total += FixedScore(score[i]);
  const uint64_t needed = MassNeeded(top_p, total);
  for (int64_t i = 0; i < kept; ++i) {
    if (!RankIsForced(ranks[i]) && sum >= needed) return i;
    sum += FixedScore(score[RankedIndex(ranks[i])]);
  }
  return kept;
}

// The positions below row.length inside the selected blocks, increasing.
inline std::vector<int32_t> CandidatesOf(const DecodeRow& row,
                                         const int32_t* blocks,
                                         int32_t count) {
  std::vector<int32_t> positions;
  for (int32_t i = 0; i < count && row.length > 0; ++i) {
    for (int64_t p = 0; p < PositionsIn(blocks[i], row.length); ++p) {
      positions.push_back(blocks[i] * kBlockPositions + static_cast<int32_t>(p));
    }
  }
  return positions;
}

// The rule of SelectTokens: the row's best candidates by forced, score and position, cut by mass;
// writes their positions to `out`, increasing, and returns how many.
inline int32_t KeepTokens(const std::vector<int32_t>& positions,
                          const std::vector<float>& score,
                          const DecodeRow& row,
                          int32_t* out) {
  const auto count = static_cast<int64_t>(positions.size());
  std::vector<uint64_t> ranks(positions.size());
  for (int32_t i = 0; i < count; ++i) {  // indices rank like the positions they stand for
    ranks[i] = RankKey(TokenIsForced(positions[i], row.length), score[i], i);
  }
  std::sort(ranks.begin(), ranks.end(), std::greater<>());
  int64_t kept = std::clamp<int64_t>(row.max_tokens, 0, count);
  if (row.top_p < 1.0f) kept = CutByMass(ranks.data(), kept, row.top_p, score.data(), count);
  for (int64_t i = 0; i < kept; ++i) out[i] = positions[RankedIndex(ranks[i])];
  std::sort(out, out + kept);
  return static_cast<int32_t>(kept);
}

}  // namespace asynctls
