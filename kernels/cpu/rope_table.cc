// SPDX-License-Identifier: Apache-2.0
// The same libm calls as the reference, on all threads: once per step, so vectors would gain little
// and equality is worth more.
#include <cmath>

#include "kernels/cpu/state.h"

namespace asynctls {

void CpuOps::RopeTable(const RopeTableArgs& a) {
  const int64_t half = a.inv_frequency.dim(0);
  state_->team.ParallelFor(a.positions.dim(0), 16, [&](int64_t t, Scratch&) {
    float* row = a.cos_sin[t].data;
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(a.positions[t]) * a.inv_frequency[i];
      row[i] = std::cos(angle) * a.scale;
      row[half + i] = std::sin(angle) * a.scale;
    }
  });
}

}  // namespace asynctls
