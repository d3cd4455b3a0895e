// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/ref/ref_ops.h"

namespace asynctls {

void RefOps::Embed(const EmbedArgs& a) {
  const int64_t width = a.table.dim(1);
  for (int64_t t = 0; t < a.ids.dim(0); ++t) {
    const int32_t id = a.ids[t] >= 0 ? a.ids[t] : a.last_token[-1 - a.ids[t]];
    const int64_t row = static_cast<int64_t>(id) - a.first_id;
    bf16* out = a.out[t].data;
    if (row >= 0 && row < a.table.dim(0)) {
      std::copy_n(a.table[row].data, width, out);
    } else {
      std::fill_n(out, width, bf16{0});
    }
  }
}

}  // namespace asynctls
