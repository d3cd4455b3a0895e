// SPDX-License-Identifier: Apache-2.0
// Level 1: the definition of the block filter over the key codes.
#include <vector>

#include "kernels/ref/exact.h"
#include "kernels/ref/ref_ops.h"
#include "kernels/ref/selection.h"

namespace asynctls {
namespace {

int64_t HeadsOf(const SelectBlocksArgs& a) {
  return a.turned.scale.dim(1) / a.out.block_count.dim(1);
}

float BlockScore(const SelectBlocksArgs& a, int64_t s, int64_t g, int64_t block) {
  const DecodeRow& row = a.rows[s];
  const int64_t heads = HeadsOf(a);
  const int64_t slot = a.slot_table(row.lane, block);
  float best = -std::numeric_limits<float>::infinity();
  for (int64_t p = 0; p < PositionsIn(block, row.length); ++p) {
    for (int64_t h = g * heads; h < (g + 1) * heads; ++h) {
      const float scale = a.turned.scale(s, h);
      if (std::isnan(scale)) continue;
      const int product = FirstProduct(a.turned.code8[s][h].data, a.codes, slot, g, p);
      best = std::max(best, static_cast<float>(product) * scale);
    }
  }
  return best;
}

}  // namespace

void RefOps::SelectBlocks(const SelectBlocksArgs& a) {
  for (int64_t s = 0; s < a.rows.dim(0); ++s) {
    const DecodeRow& row = a.rows[s];
    const int64_t blocks = BlocksOf(row.length);
    for (int64_t g = 0; g < a.out.block_count.dim(1); ++g) {
      int32_t* out = a.out.blocks[s][g].data;
      int32_t& count = a.out.block_count(s, g);
      count = 0;
      a.out.nan_heads(s, g) = 0;
      if (row.length == 0) continue;
      for (int64_t h = g * HeadsOf(a); h < (g + 1) * HeadsOf(a); ++h) {
        a.out.nan_heads(s, g) += std::isnan(a.turned.scale(s, h));
      }
      std::vector<uint64_t> ranks(blocks);
      for (int64_t b = 0; b < blocks; ++b) {
        ranks[b] =
            RankKey(BlockIsForced(b, blocks), BlockScore(a, s, g, b), static_cast<int32_t>(b));
      }
      count = KeepBest(ranks.data(), blocks, row.max_blocks, out);
      if (row.lag != DecodeRow::kExact) ExchangeLag(row, a.lag[row.lane][g].data, out, &count);
    }
  }
}

}  // namespace asynctls
