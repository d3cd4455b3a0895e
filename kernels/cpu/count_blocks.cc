// SPDX-License-Identifier: Apache-2.0
// Only for steps that somebody watches: one pass over the ids, which are in order of position.
#include <algorithm>

#include "kernels/cpu/state.h"

namespace asynctls {

void CpuOps::CountBlocks(const CountBlocksArgs& a) {
  const View<int32_t, 2>& counts = a.selection.token_count;
  state_->team.ParallelFor(a.heat.dim(0), [&](int64_t s, Scratch&) {
    int32_t* heat = a.heat[s].data;
    if (!a.add) std::fill_n(heat, a.heat.dim(1), 0);
    for (int64_t g = 0; g < counts.dim(1); ++g) {
      const int32_t* tokens = a.selection.tokens[s][g].data;
      int32_t last = -1;
      for (int32_t i = 0; i < counts(s, g); ++i) {
        const int32_t block = tokens[i] / kBlockPositions;
        if (block != last) ++heat[block];
        last = block;
      }
    }
  });
}

}  // namespace asynctls
