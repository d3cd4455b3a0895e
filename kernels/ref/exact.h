// SPDX-License-Identifier: Apache-2.0
// The exact arithmetic of the two-level selection. Every backend reproduces these functions bit for
// bit (the CPU and CUDA kernels in their own instructions, the reference by calling them), which is
// why selections are equal everywhere. Only IEEE operations with one stated order are used; who
// includes this file must not let the compiler contract a * b + c (the `ops` target sees to it).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/ops.h"

namespace asynctls {

// sum_d x[d] * table[d * stride] as four interleaved chains of fused multiply-adds, joined as
// (a0 + a1) + (a2 + a3). Chain j runs over d = j, j + 4, j + 8, ...
inline float ExactProduct(const float* x, const float* table, int64_t stride, int64_t d_count) {
  float a[4] = {0, 0, 0, 0};
  for (int64_t d = 0; d < d_count; ++d) a[d & 3] = std::fma(x[d], table[d * stride], a[d & 3]);
  return (a[0] + a[1]) + (a[2] + a[3]);
}

// The code of one coordinate, in code steps from the mean: clamp(floor(x) + 8, 0, 15), NaN is 8.
inline uint8_t CodeOf(float x) {
  if (std::isnan(x)) return 8;
  const float c = std::floor(x) + 8.0f;
  return static_cast<uint8_t>(c < 0.0f ? 0.0f : c > 15.0f ? 15.0f : c);
}

// The r codes of a key of KV head g, one per byte, not packed. The key is the one that is stored:
// bf16 values widened to fp32.
inline void EncodeKey(const float* key /*[D]*/,
                      const KeyCodeTable& t,
                      int g,
                      uint8_t* code /*[r]*/) {
  const int64_t d_count = t.encode.dim(1), r = t.encode.dim(2);
  const float* table = t.encode[g].data;
  const float* offset = t.offset[g].data;
  for (int64_t c = 0; c < r; ++c) {
    code[c] = CodeOf(ExactProduct(key, table + c, r, d_count) - offset[c]);
  }
}

// Code c < 8 of a word of whole codes, and code c < 16 of a word of half codes (see KeyCodes).
inline uint32_t Nibble(uint32_t word, int c) { return word >> (8 * (c % 4) + 4 * (c / 4)) & 15; }
inline uint32_t Crumb(uint32_t word, int c) { return word >> (8 * (c % 4) + 2 * (c / 4)) & 3; }

// Packs the r codes of one token into the layout of KeyCodes.
inline void StoreCode(
    const uint8_t* code /*[r]*/, const KeyCodes& codes, int64_t slot, int64_t g, int64_t p) {
  constexpr int kRest = kFineDirections + kCoarseDirections;
  uint32_t fine = 0, high = 0, low = 0, rest = 0;
  for (int c = 0; c < 8; ++c) {
    fine |= static_cast<uint32_t>(code[c]) << (8 * (c % 4) + 4 * (c / 4));
    rest |= static_cast<uint32_t>(code[kRest + c]) << (8 * (c % 4) + 4 * (c / 4));
  }
  for (int c = 0; c < kCoarseDirections; ++c) {
    const uint32_t x = code[kFineDirections + c];
    high |= (x >> 2) << (8 * (c % 4) + 2 * (c / 4));
    low |= (x & 3) << (8 * (c % 4) + 2 * (c / 4));
  }
  codes.first(slot, g, 0, p) = fine;
  codes.first(slot, g, 1, p) = high;
  codes.second(slot, g, 0, p) = low;
  codes.second(slot, g, 1, p) = rest;
}

// The integer product of a turned query with part 1 of a token's code.
inline int FirstProduct(
    const int8_t* code8, const KeyCodes& codes, int64_t slot, int64_t g, int64_t p) {
  const uint32_t fine = codes.first(slot, g, 0, p), high = codes.first(slot, g, 1, p);
  int sum = 0;
  for (int c = 0; c < kFineDirections; ++c) {
    sum += code8[c] * (2 * static_cast<int>(Nibble(fine, c)) - 15);
  }
  for (int c = 0; c < kCoarseDirections; ++c) {
    sum += code8[kFineDirections + c] * (8 * static_cast<int>(Crumb(high, c)) - 12);
  }
  return sum;
}

// The integer product of a turned query with all of a token's code.
inline int WholeProduct(
    const int8_t* code8, const KeyCodes& codes, int64_t slot, int64_t g, int64_t p) {
  const uint32_t low = codes.second(slot, g, 0, p), rest = codes.second(slot, g, 1, p);
  int sum = FirstProduct(code8, codes, slot, g, p);
  for (int c = 0; c < kCoarseDirections; ++c) {
    sum += code8[kFineDirections + c] * (2 * static_cast<int>(Crumb(low, c)) - 3);
  }
  for (int c = 0; c < 8; ++c) {
    sum += code8[kFineDirections + kCoarseDirections + c] *
           (2 * static_cast<int>(Nibble(rest, c)) - 15);
  }
  return sum;
}

// A turned query whose largest product lies outside these is nothing (zeros) or not finite (NaN):
// within them no later step of the definition can overflow or become subnormal.
inline constexpr float kTurnedSmallest = 0x1p-100f;
inline constexpr float kTurnedLargest = 0x1p+100f;

// Turns the query of one head of KV head g into code8 [r]; returns the head's scale (NaN: leave
// the head out). `product` is scratch of r values.
inline float TurnQuery(const float* q /*[D]*/,
                       const KeyCodeTable& t,
                       int g,
                       float attention_scale,
                       float* product /*[r]*/,
                       int8_t* code8 /*[r]*/) {
  const int64_t d_count = t.turn.dim(1), r = t.turn.dim(2);
  const float* table = t.turn[g].data;
  float m = 0.0f;
  bool finite = true;
  for (int64_t c = 0; c < r; ++c) {
    product[c] = ExactProduct(q, table + c, r, d_count);
    const float magnitude = std::fabs(product[c]);
    finite = finite && magnitude <= kTurnedLargest;  // false for NaN
    m = magnitude > m ? magnitude : m;
  }
  if (!finite || m < kTurnedSmallest) {
    for (int64_t c = 0; c < r; ++c) code8[c] = 0;
    return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const float unit = 127.0f / m;
  for (int64_t c = 0; c < r; ++c) {
    code8[c] = static_cast<int8_t>(std::nearbyint(product[c] * unit));  // ties to even
  }
  return m * (attention_scale / 254.0f);
}

inline constexpr uint32_t kFixedOne = 1u << 24;
inline constexpr float kLog2E = 1.44269502f;

// The polynomial of FixedExp2, constant term first; |p(f) - 2^f| < 1.3e-7 on [0, 1], p(0) = 1.
inline constexpr float kExp2Coefficients[6] = {
    1.0f, 0x1.62e4e2p-1f, 0x1.ebd53cp-3f, 0x1.c9686cp-5f, 0x1.260a28p-7f, 0x1.ee382ap-10f};

// 2^y as an integer of 24 fraction bits: y >= 0 gives 2^24, y < -24 gives 0, else with n = floor(y)
// and f = y - n: rint(p(f) * 2^(n + 24)), ties to even; p by Horner, every step one fma.
inline uint32_t FixedExp2(float y) {
  if (y >= 0.0f) return kFixedOne;
  if (!(y >= -24.0f)) return 0;
  const float n = std::floor(y), f = y - n;
  float p = kExp2Coefficients[5];
  for (int i = 4; i >= 0; --i) p = std::fma(p, f, kExp2Coefficients[i]);
  const auto exponent = static_cast<uint32_t>(static_cast<int32_t>(n) + 24 + 127);
  return static_cast<uint32_t>(std::nearbyint(p * std::bit_cast<float>(exponent << 23)));
}

// A score as an unsigned integer of the same order: NaN is 0 and ranks last, -0 equals +0.
inline uint32_t OrderedKey(float score) {
  if (std::isnan(score)) return 0;
  const uint32_t u = std::bit_cast<uint32_t>(score + 0.0f);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// Forced candidates rank above every score, and equal among themselves.
inline constexpr uint32_t kForcedKey = ~0u;

// The rank of a candidate among all: the larger wins. Forced candidates come first, then the score
// decides, then the lower index (below 2^31). No two candidates of a row are equal.
inline uint64_t RankKey(bool forced, float score, int32_t index) {
  const uint64_t key = forced ? kForcedKey : OrderedKey(score);
  return key << 31 | static_cast<uint64_t>(0x7fffffff - index);
}
inline bool RankIsForced(uint64_t rank) { return rank >> 31 == kForcedKey; }
inline int32_t RankedIndex(uint64_t rank) {
  return 0x7fffffff - static_cast<int32_t>(rank & 0x7fffffffu);
}

// The blocks every selection keeps: the first and the last two.
inline bool BlockIsForced(int64_t block, int64_t block_count) {
  return block == 0 || block + 2 >= block_count;
}
// The positions every selection keeps: the sinks and the window, the last one included.
inline bool TokenIsForced(int64_t position, int64_t length) {
  return position < kSinkPositions || position + kWindowPositions >= length;
}

// A summed score as an integer of 2^-32, for the cut by mass; NaN and what is negative are 0. Scores
// are at most the number of heads, so sums over 2^20 positions of 2^11 heads fit.
inline uint64_t FixedScore(float score) {
  return score > 0 ? static_cast<uint64_t>(score * 0x1p32f) : 0;
}
// The mass at which the cut stops: `total` is the sum of FixedScore over all candidates.
inline uint64_t MassNeeded(float top_p, uint64_t total) {
  return static_cast<uint64_t>(static_cast<double>(top_p) * static_cast<double>(total));
}

}  // namespace asynctls
