// SPDX-License-Identifier: Apache-2.0
// Attention of the query heads of one group over a range of positions, in fp32 vectors, and the
// merge of such parts. Both dense ops are made of it (decoding on every machine, prompts where
// there is no AMX). A range is walked block by block with a running maximum, so its result depends
// on the range, the query and the KV only.
#pragma once

#include <cstdint>

#include "kernels/cpu/thread_team.h"
#include "kernels/ops.h"

namespace asynctls {

// The query heads of some KV heads, g and those after it, at one position.
struct AttendHeads {
  const bf16* q;  // [heads, group, dim]
  const KvView* kv;
  int64_t lane;
  int64_t g;
  int64_t heads;
  int64_t group;  // query heads per KV head
  float scale;

  int64_t dim() const { return kv->rows.dim(3) / 2; }
};

// What one range gives for one KV head: the values weighted by exp(logit - largest) [group, dim],
// then the largest logit [group], then the sum of the weights [group].
inline int64_t AttendPartSize(int64_t group, int64_t dim) { return group * (dim + 2); }

// Positions of each range of a row of this length. It may depend on nothing else: the cut decides
// the bits of the result.
inline int64_t AttendRangeSize(int64_t length) { return length <= 8192 ? 512 : 2048; }
inline int64_t AttendRangeCount(int64_t length) {
  return (length + AttendRangeSize(length) - 1) / AttendRangeSize(length);
}

// Writes the parts of positions [begin, end), one per KV head, `stride` floats apart. What the
// heads of a slot have side by side in memory is read in that order; a head's bits do not depend on
// the others. Requires: begin a multiple of kBlockPositions, begin < end. Uses the places of
// `scratch` but 2, 3 and 7.
void AttendRange(const AttendHeads& a,
                 int64_t begin,
                 int64_t end,
                 float* parts,
                 int64_t stride,
                 Scratch& scratch);

// The two ways it goes: fp32 vectors (Highway), any machine; AMX tiles, which round the weights to
// bf16, for groups of up to 16 and head dims that are multiples of 32.
void AttendRangeFp32(const AttendHeads& a,
                     int64_t begin,
                     int64_t end,
                     float* parts,
                     int64_t stride,
                     Scratch& scratch);
namespace amx {
bool CanAttend(int64_t group, int64_t dim);
void AttendRange(const AttendHeads& a,
                 int64_t begin,
                 int64_t end,
                 float* parts,
                 int64_t stride,
                 Scratch& scratch);
}  // namespace amx

// out [group, dim] of `count` parts that lie side by side, in their order; overwrites the first.
// None gives zeros.
void MergeParts(float* parts, int64_t count, int64_t group, int64_t dim, bf16* out);

// For both ways: where they are in a range, and the order they take, `step` positions of a head at
// a time (it divides a block): the head's block, then the next head's, then the next block.
struct AttendPlace {
  int64_t head = 0;  // from g on
  int64_t p = 0;

  // False at the end of the range.
  bool Advance(const AttendHeads& a, int64_t step, int64_t end) {
    if ((p + step) % kBlockPositions != 0 && p + step < end) {
      p += step;
      return true;
    }
    p -= p % kBlockPositions;
    if (++head < a.heads) return true;
    head = 0;
    p += kBlockPositions;
    return p < end;
  }
  const bf16* Rows(const AttendHeads& a) const {
    return &a.kv->rows(
        a.kv->slot_table(a.lane, p / kBlockPositions), a.g + head, p % kBlockPositions, 0);
  }
};

// The next rows on their way while others are computed with, a few cache lines at a time: slots are
// scattered, so the processor cannot guess them.
struct Ahead {
  const char* at = nullptr;
  const char* end = nullptr;

  [[gnu::always_inline]] void Fetch(int lines) {
    if (at >= end) return;
    for (int i = 0; i < lines; ++i) __builtin_prefetch(at + 64 * i, 0, 2);
    at += 64 * lines;
  }
};
inline Ahead FetchAhead(const AttendHeads& a, const AttendPlace& next, int64_t step) {
  const char* at = reinterpret_cast<const char*>(next.Rows(a));
  return {at, at + step * a.dim() * 2 * static_cast<int64_t>(sizeof(bf16))};
}

}  // namespace asynctls
