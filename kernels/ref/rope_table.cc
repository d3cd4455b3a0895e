// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/ref/ref_ops.h"

namespace asynctls {

void RefOps::RopeTable(const RopeTableArgs& a) {
  const int64_t half = a.inv_frequency.dim(0);
  for (int64_t t = 0; t < a.positions.dim(0); ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(a.positions[t]) * a.inv_frequency[i];
      a.cos_sin(t, i) = std::cos(angle) * a.scale;
      a.cos_sin(t, half + i) = std::sin(angle) * a.scale;
    }
  }
}

}  // namespace asynctls
