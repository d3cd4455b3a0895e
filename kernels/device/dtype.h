// SPDX-License-Identifier: Apache-2.0
// The one activation and KV type: bf16 storage, fp32 arithmetic. Conversions round to nearest even
// and keep NaN a NaN, bit for bit like the hardware conversions of AVX-512 and CUDA.
#pragma once

#include <bit>
#include <cstdint>

namespace asynctls {

struct bf16 {
  uint16_t bits;
};
static_assert(sizeof(bf16) == 2);

inline float ToFloat(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

inline bf16 ToBf16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

}  // namespace asynctls
