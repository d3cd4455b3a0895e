// SPDX-License-Identifier: Apache-2.0
// SplitMix64's finalizer (Steele, Lea, Flood, OOPSLA 2014) as a counter-based generator: the random
// numbers of synthetic weights.
#pragma once

#include <cstdint>

namespace asynctls {

constexpr uint64_t SplitMix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace asynctls
