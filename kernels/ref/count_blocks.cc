// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/ref_ops.h"

namespace asynctls {

void RefOps::CountBlocks(const CountBlocksArgs& a) {
  const Selection& selection = a.selection;
  for (int64_t s = 0; s < a.heat.dim(0); ++s) {
    for (int64_t b = 0; b < a.heat.dim(1); ++b) {
      int32_t heads = 0;
      for (int64_t g = 0; g < selection.token_count.dim(1); ++g) {
        bool read = false;
        for (int64_t i = 0; i < selection.token_count(s, g); ++i) {
          read = read || selection.tokens(s, g, i) / kBlockPositions == b;
        }
        heads += read;
      }
      a.heat(s, b) = heads + (a.add ? a.heat(s, b) : 0);
    }
  }
}

}  // namespace asynctls
