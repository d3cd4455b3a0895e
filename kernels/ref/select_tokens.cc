// SPDX-License-Identifier: Apache-2.0
// Level 2: the definition of the token filter inside the selected blocks.
#include <vector>

#include "kernels/ref/exact.h"
#include "kernels/ref/ref_ops.h"
#include "kernels/ref/selection.h"

namespace asynctls {
namespace {

// The approximate logit of one position for head h of row s, over all directions.
float Logit(const SelectTokensArgs& a, int64_t s, int64_t g, int64_t h, int64_t position) {
  const int64_t slot = a.slot_table(a.rows[s].lane, position / kBlockPositions);
  const int product =
      WholeProduct(a.turned.code8[s][h].data, a.codes, slot, g, position % kBlockPositions);
  return static_cast<float>(product) * a.turned.scale(s, h);
}

// score[i] += the softmax weight of candidate i for head h.
void AddHead(const SelectTokensArgs& a,
             int64_t s,
             int64_t g,
             int64_t h,
             const std::vector<int32_t>& candidates,
             std::vector<float>& score) {
  std::vector<float> logit(candidates.size());
  float top = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < candidates.size(); ++i) {
    logit[i] = Logit(a, s, g, h, candidates[i]);
    top = std::max(top, logit[i]);
  }
  uint64_t z = 0;
  std::vector<uint32_t> weight(candidates.size());
  for (size_t i = 0; i < candidates.size(); ++i) {
    weight[i] = FixedExp2((logit[i] - top) * kLog2E);
    z += weight[i];
  }
  const float inverse = 1.0f / static_cast<float>(z);
  for (size_t i = 0; i < candidates.size(); ++i) {
    score[i] = std::fma(static_cast<float>(weight[i]), inverse, score[i]);
  }
}

}  // namespace

void RefOps::SelectTokens(const SelectTokensArgs& a) {
  const int64_t groups = a.out.block_count.dim(1), heads = a.turned.code8.dim(1) / groups;
  for (int64_t s = 0; s < a.rows.dim(0); ++s) {
    const DecodeRow& row = a.rows[s];
    for (int64_t g = 0; g < groups; ++g) {
      const std::vector<int32_t> candidates =
          CandidatesOf(row, a.out.blocks[s][g].data, a.out.block_count(s, g));
      std::vector<float> score(candidates.size(), 0.0f);
      for (int64_t h = g * heads; h < (g + 1) * heads; ++h) {
        if (!candidates.empty() && !std::isnan(a.turned.scale(s, h))) {
          AddHead(a, s, g, h, candidates, score);
        }
      }
      int32_t* out = a.out.tokens[s][g].data;
      a.out.token_count(s, g) = KeepTokens(candidates, score, row, out);
      a.out.touched(s, g) = BlocksTouched(out, a.out.token_count(s, g));
    }
  }
}

}  // namespace asynctls
