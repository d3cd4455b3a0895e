// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/splitmix.h"
#include "kernels/ref/ref_ops.h"

namespace asynctls {

void RefOps::FillRandom(const FillRandomArgs& a) {
  for (int64_t i = 0; i < a.out.dim(0); ++i) {
    for (int64_t j = 0; j < a.out.dim(1); ++j) {
      const int64_t c = a.first + i * a.stride + j;
      const uint64_t bits = SplitMix64(a.key + static_cast<uint64_t>(c / 4));
      const auto draw = static_cast<int16_t>(bits >> (16 * (c % 4)));
      a.out(i, j) = ToBf16(a.centre + a.spread * static_cast<float>(draw));
    }
  }
}

}  // namespace asynctls
