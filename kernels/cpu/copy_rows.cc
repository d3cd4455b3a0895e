// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "kernels/cpu/state.h"

namespace asynctls {

void CpuOps::CopyRows(const CopyRowsArgs& a) {
  const auto bytes = static_cast<size_t>(a.src.dim(1)) * sizeof(bf16);
  state_->team.ParallelFor(a.rows.dim(0), RowGrain(a.src.dim(1)), [&](int64_t s, Scratch&) {
    std::memcpy(a.dst[s].data, a.src[a.rows[s]].data, bytes);
  });
}

}  // namespace asynctls
