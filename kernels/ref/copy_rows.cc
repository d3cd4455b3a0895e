// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/ref/ref_ops.h"

namespace asynctls {

void RefOps::CopyRows(const CopyRowsArgs& a) {
  for (int64_t s = 0; s < a.rows.dim(0); ++s) {
    std::copy_n(a.src[a.rows[s]].data, a.src.dim(1), a.dst[s].data);
  }
}

}  // namespace asynctls
