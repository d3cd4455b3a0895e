// SPDX-License-Identifier: Apache-2.0
// The paper's selector: minimum and maximum of the keys per block, a few channels of every key in
// 4 bits. The definition; fp32, so near ties may fall differently on other backends.
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/ref/exact.h"
#include "kernels/ref/ref_ops.h"
#include "kernels/ref/selection.h"

namespace asynctls {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

void AppendRange(const bf16* key, int64_t p, View<bf16, 2> range /*[2, D]*/) {
  for (int64_t d = 0; d < range.dim(1); ++d) {
    bf16 &lo = range(0, d), &hi = range(1, d);
    if (p == 0 || ToFloat(key[d]) < ToFloat(lo)) lo = key[d];
    if (p == 0 || ToFloat(key[d]) > ToFloat(hi)) hi = key[d];
  }
}

void AppendCode(const bf16* key, const int32_t* channels, View<uint8_t, 1> code, bf16* step_zero) {
  const int64_t r = 2 * code.dim(0);
  float lo = ToFloat(key[channels[0]]), hi = lo;
  for (int64_t c = 1; c < r; ++c) {
    lo = std::min(lo, ToFloat(key[channels[c]]));
    hi = std::max(hi, ToFloat(key[channels[c]]));
  }
  step_zero[0] = ToBf16((hi - lo) / 15.0f);
  step_zero[1] = ToBf16(lo);
  const float step = ToFloat(step_zero[0]), zero = ToFloat(step_zero[1]);
  const auto code_of = [&](int64_t c) {
    const float x = std::nearbyint((ToFloat(key[channels[c]]) - zero) / step);
    return static_cast<int>(x >= 15.0f ? 15.0f : x >= 0.0f ? x : 0.0f);  // NaN is 0
  };
  for (int64_t b = 0; b < code.dim(0); ++b) {
    code[b] = static_cast<uint8_t>(code_of(2 * b) | code_of(2 * b + 1) << 4);
  }
}

bool IsFinite(const bf16* q, int64_t d_count) {
  for (int64_t d = 0; d < d_count; ++d) {
    if (!std::isfinite(ToFloat(q[d]))) return false;
  }
  return true;
}

// Quest's bound on q . k over the keys of a block.
float Bound(const bf16* q, View<bf16, 2> range) {
  float sum = 0.0f;
  for (int64_t d = 0; d < range.dim(1); ++d) {
    const float x = ToFloat(q[d]);
    sum += std::max(x * ToFloat(range(0, d)), x * ToFloat(range(1, d)));
  }
  return sum;
}

float TokenLogit(
    const BoundSelectTokensArgs& a, const bf16* q, int64_t slot, int64_t g, int64_t p) {
  const float step = ToFloat(a.index.step(slot, g, p, 0)),
              zero = ToFloat(a.index.step(slot, g, p, 1));
  float sum = 0.0f;
  for (int64_t c = 0; c < a.index.channels.dim(1); ++c) {
    const int byte = a.index.code(slot, g, p, c / 2), code = c % 2 == 0 ? byte & 15 : byte >> 4;
    sum += ToFloat(q[a.index.channels(g, c)]) * (zero + step * static_cast<float>(code));
  }
  return sum * a.scale;
}

// score[i] += softmax weight of candidate i for one head.
void AddSoftmax(const std::vector<float>& logit, std::vector<float>& score) {
  float top = kLowest, z = 0.0f;
  for (float x : logit) top = std::max(top, x);
  if (!std::isfinite(top)) return;
  for (float x : logit) z += std::isnan(x) ? 0.0f : std::exp(x - top);
  for (size_t i = 0; i < logit.size(); ++i) score[i] += std::exp(logit[i] - top) / z;
}

}  // namespace

void RefOps::BoundAppend(const BoundAppendArgs& a) {
  for (int64_t t = 0; t < a.lanes.dim(0); ++t) {
    const int64_t position = a.positions[t], p = position % kBlockPositions;
    const int64_t slot = a.kv.slot_table(a.lanes[t], position / kBlockPositions);
    for (int64_t g = 0; g < a.kv.rows.dim(1); ++g) {
      const bf16* key = &a.kv.rows(slot, g, p, 0);
      AppendRange(key, p, a.index.range[slot][g]);
      AppendCode(
          key, a.index.channels[g].data, a.index.code[slot][g][p], a.index.step[slot][g][p].data);
    }
  }
}

void RefOps::BoundSelectBlocks(const BoundSelectBlocksArgs& a) {
  const int64_t groups = a.index.range.dim(1), heads = a.q.dim(1) / groups, d_count = a.q.dim(2);
  for (int64_t s = 0; s < a.rows.dim(0); ++s) {
    const DecodeRow& row = a.rows[s];
    const int64_t blocks = BlocksOf(row.length);
    for (int64_t g = 0; g < groups; ++g) {
      int32_t& count = a.out.block_count(s, g);
      count = 0;
      a.out.nan_heads(s, g) = 0;
      if (row.length == 0) continue;
      std::vector<float> score(blocks, kLowest);
      for (int64_t h = g * heads; h < (g + 1) * heads; ++h) {
        const bf16* q = a.q[s][h].data;
        if (!IsFinite(q, d_count)) {
          ++a.out.nan_heads(s, g);
          continue;
        }
        for (int64_t b = 0; b < blocks; ++b) {
          score[b] = std::max(score[b], Bound(q, a.index.range[a.slot_table(row.lane, b)][g]));
        }
      }
      std::vector<uint64_t> ranks(blocks);
      for (int64_t b = 0; b < blocks; ++b) {
        ranks[b] = RankKey(BlockIsForced(b, blocks), score[b], static_cast<int32_t>(b));
      }
      int32_t* out = a.out.blocks[s][g].data;
      count = KeepBest(ranks.data(), blocks, row.max_blocks, out);
      if (row.lag != DecodeRow::kExact) ExchangeLag(row, a.lag[row.lane][g].data, out, &count);
    }
  }
}

void RefOps::BoundSelectTokens(const BoundSelectTokensArgs& a) {
  const int64_t groups = a.index.range.dim(1), heads = a.q.dim(1) / groups, d_count = a.q.dim(2);
  for (int64_t s = 0; s < a.rows.dim(0); ++s) {
    const DecodeRow& row = a.rows[s];
    for (int64_t g = 0; g < groups; ++g) {
      const std::vector<int32_t> position =
          CandidatesOf(row, a.out.blocks[s][g].data, a.out.block_count(s, g));
      std::vector<float> score(position.size(), 0.0f), logit(position.size());
      for (int64_t h = g * heads; h < (g + 1) * heads; ++h) {
        const bf16* q = a.q[s][h].data;
        if (!IsFinite(q, d_count)) continue;
        for (size_t i = 0; i < position.size(); ++i) {
          const int64_t slot = a.slot_table(row.lane, position[i] / kBlockPositions);
          logit[i] = TokenLogit(a, q, slot, g, position[i] % kBlockPositions);
        }
        AddSoftmax(logit, score);
      }
      int32_t* out = a.out.tokens[s][g].data;
      a.out.token_count(s, g) = KeepTokens(position, score, row, out);
      a.out.touched(s, g) = BlocksTouched(out, a.out.token_count(s, g));
    }
  }
}

}  // namespace asynctls
