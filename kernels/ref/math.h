// SPDX-License-Identifier: Apache-2.0
// The few loops that several reference ops share.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/device/dtype.h"

namespace asynctls::ref {

// sum of a[i] * b[i] in fp32. Sixteen partial sums, so that long rows lose no more than a vector
// unit would; the order is not part of any contract.
inline float Dot(const bf16* a, const bf16* b, int64_t n) {
  constexpr int kLanes = 16;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) sums[j] += ToFloat(a[i + j]) * ToFloat(b[i + j]);
  }
  for (; i < n; ++i) sums[i % kLanes] += ToFloat(a[i]) * ToFloat(b[i]);
  float total = 0;
  for (float s : sums) total += s;
  return total;
}

// out = norm(x) as RmsNormArgs defines it. `out` may be `x`.
inline void RmsNormRow(const bf16* x, const bf16* weight, int64_t n, float eps, bf16* out) {
  const float inverse = 1.0f / std::sqrt(Dot(x, x, n) / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) {
    out[i] = ToBf16(ToFloat(ToBf16(ToFloat(x[i]) * inverse)) * ToFloat(weight[i]));
  }
}

}  // namespace asynctls::ref
