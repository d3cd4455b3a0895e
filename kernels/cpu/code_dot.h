// SPDX-License-Identifier: Apache-2.0
// Integer products of turned queries with the key codes of blocks of 64 positions, four query heads
// at a time (heads that are not there count as not finite). The vpdpbusd form; the form for every
// other instruction set is code_dot-inl.h.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/ops.h"

namespace asynctls {

inline constexpr int kQuad = 4;
inline constexpr int kRestDirections = kFineDirections + kCoarseDirections;  // where they begin
inline constexpr int kCodePlanes = kCodeDirections / 4;
inline constexpr int64_t kPartWords = kCodeWords * kBlockPositions;  // of one block and head
inline constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Four heads' turned queries. A code stands for 2 code - 15, and its high half for 8 (code >> 2) -
// 12, so that a product is 2 * sum(code8 * code) - bias.
struct QueryQuad {
  alignas(64) int8_t code8[kQuad][kCodeDirections];
  alignas(64) int32_t packed[kCodePlanes][kQuad];  // 4 directions as the bytes of an int32
  alignas(16) int32_t bias[2][kQuad];              // of part 1 and of the whole code
  alignas(16) float scale[kQuad];                  // NaN: leave the head out
};

// Takes `heads` <= 4 rows of code8 [r] and their scales.
void FillQuad(const int8_t* code8, const float* scale, int64_t heads, QueryQuad* quad);

// Whether this machine has AVX-512 VNNI, which the functions below require.
bool HasVnni();

// best[g][i] = the score of block i for KV head g, for `count` full blocks, from part 1 of the
// codes; rows of `best` are `stride` apart. A slot's heads lie side by side and are read in that
// order.
void ScoreBlocksVnni(const uint32_t* first /*[slot][groups][kPartWords]*/,
                     const int32_t* slots,
                     int64_t count,
                     const QueryQuad* quads /*[groups][quad_count]*/,
                     int64_t groups,
                     int64_t quad_count,
                     float* best,
                     int64_t stride);

// logit[h][p] = approximate logit of position p of a full block for head h of the quad.
void BlockLogitsVnni(const uint32_t* first,
                     const uint32_t* second,
                     const QueryQuad& quad,
                     float* const logit[kQuad]);

}  // namespace asynctls
