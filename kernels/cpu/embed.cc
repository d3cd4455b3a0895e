// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "kernels/cpu/state.h"

namespace asynctls {

void CpuOps::Embed(const EmbedArgs& a) {
  const auto bytes = static_cast<size_t>(a.table.dim(1)) * sizeof(bf16);
  state_->team.ParallelFor(a.ids.dim(0), RowGrain(a.table.dim(1)), [&](int64_t t, Scratch&) {
    const int32_t id = a.ids[t] >= 0 ? a.ids[t] : a.last_token[-1 - a.ids[t]];
    const int64_t row = static_cast<int64_t>(id) - a.first_id;
    if (row >= 0 && row < a.table.dim(0)) {
      std::memcpy(a.out[t].data, a.table[row].data, bytes);
    } else {
      std::memset(a.out[t].data, 0, bytes);
    }
  });
}

}  // namespace asynctls
