// SPDX-License-Identifier: Apache-2.0
// Integer products of turned queries with the key codes of blocks of 64 positions, four query heads
// at a time (heads that are not there count as not finite). The vpdpbusd form; the form for every
// other instruction set is code_dot-inl.h.
#pragma once

#include <cstdint>
#include <limits>

namespace asynctls {

inline constexpr int kQuad = 4;
inline constexpr int64_t kMaxDirections = 128;
inline constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Four heads' turned queries. A code stands for 2 code - 15, so that the sum over all directions is
// 2 * sum(code8 * code) - 15 * sum(code8).
struct QueryQuad {
  alignas(64) int8_t code8[kQuad][kMaxDirections];
  // [step of 8 directions][even, odd directions][head]: 4 directions as the bytes of an int32.
  alignas(64) int32_t packed[kMaxDirections / 8][2][kQuad];
  alignas(16) int32_t bias[2][kQuad];  // 15 * sum(code8), over the first r1 and over all
  alignas(16) float scale[kQuad];      // NaN: leave the head out
};

// Takes `heads` <= 4 rows of code8 [r] and their scales.
void FillQuad(
    const int8_t* code8, const float* scale, int64_t heads, int64_t r1, int64_t r, QueryQuad* quad);

// Whether this machine has AVX-512 VNNI. Requires of the functions below: it does, and r1 and r2
// are multiples of 8.
bool HasVnni();

// best[i] = max(best[i], score of block i) for `count` full blocks, over the first r1 directions.
// The codes of block i begin at codes + slots[i] * stride.
void ScoreBlocksVnni(const uint8_t* codes,
                     int64_t stride,
                     const int32_t* slots,
                     int64_t count,
                     int64_t r1,
                     const QueryQuad& quad,
                     float* best);

// logit[h][p] = approximate logit of position p of a full block for head h of the quad.
void BlockLogitsVnni(const uint8_t* first,
                     int64_t r1,
                     const uint8_t* second,
                     int64_t r2,
                     const QueryQuad& quad,
                     float* const logit[kQuad]);

}  // namespace asynctls
