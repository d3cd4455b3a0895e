// SPDX-License-Identifier: Apache-2.0
// Each 64 bits drawn are four values.
#include "kernels/cpu/state.h"
#include "kernels/device/splitmix.h"

namespace asynctls {

void CpuOps::FillRandom(const FillRandomArgs& a) {
  state_->team.ParallelFor(a.out.dim(0), [&](int64_t i, Scratch&) {
    bf16* out = a.out[i].data;
    uint64_t bits = 0;
    int64_t drawn = -1;
    for (int64_t j = 0; j < a.out.dim(1); ++j) {
      const int64_t c = a.first + i * a.stride + j;
      if (c / 4 != drawn) bits = SplitMix64(a.key + static_cast<uint64_t>(drawn = c / 4));
      const auto draw = static_cast<int16_t>(bits >> (16 * (c % 4)));
      out[j] = ToBf16(a.centre + a.spread * static_cast<float>(draw));
    }
  });
}

}  // namespace asynctls
