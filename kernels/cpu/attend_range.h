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

// The query heads of one KV head at one position.
struct AttendGroup {
  const bf16* q;  // [group, dim]
  const KvView* kv;
  int64_t lane;
  int64_t g;
  int64_t group;
  float scale;
};

// What one range gives: the values weighted by exp(logit - largest) [group, dim], then the largest
// logit [group], then the sum of the weights [group].
inline int64_t AttendPartSize(int64_t group, int64_t dim) { return group * (dim + 2); }

// Positions of each range of a row of this length. It may depend on nothing else: the cut decides
// the bits of the result.
inline int64_t AttendRangeSize(int64_t length) { return length <= 8192 ? 512 : 2048; }
inline int64_t AttendRangeCount(int64_t length) {
  return (length + AttendRangeSize(length) - 1) / AttendRangeSize(length);
}

// Writes the part of positions [begin, end). Requires: begin a multiple of kBlockPositions, begin <
// end. Uses the places of `scratch` but 2, 3 and 7.
void AttendRange(const AttendGroup& a, int64_t begin, int64_t end, float* part, Scratch& scratch);

// The two ways it goes: fp32 vectors (Highway), any machine; AMX tiles, which round the weights to
// bf16, for up to 16 heads and head dims that are multiples of 32.
void AttendRangeFp32(
    const AttendGroup& a, int64_t begin, int64_t end, float* part, Scratch& scratch);
namespace amx {
bool CanAttend(int64_t group, int64_t dim);
void AttendRange(const AttendGroup& a, int64_t begin, int64_t end, float* part, Scratch& scratch);
}  // namespace amx

// out [group, dim] of `count` parts that lie side by side, in their order; overwrites the first.
// None gives zeros.
void MergeParts(float* parts, int64_t count, int64_t group, int64_t dim, bf16* out);

// For both ways: the row of position p.
inline const bf16* KvRows(const AttendGroup& a, int64_t p) {
  return &a.kv->rows(a.kv->slot_table(a.lane, p / kBlockPositions), a.g, p % kBlockPositions, 0);
}

// The next rows on their way while others are computed with, a few cache lines at a time: slots are
// scattered, so the processor cannot guess them.
struct Ahead {
  const char* at;
  const char* end;

  [[gnu::always_inline]] void Fetch(int lines) {
    if (at >= end) return;
    for (int i = 0; i < lines; ++i) __builtin_prefetch(at + 64 * i, 0, 2);
    at += 64 * lines;
  }
};
// The `step` rows after those of position p (both divide a block); none at the end of the range.
inline Ahead NextRows(const AttendGroup& a, int64_t p, int64_t step, int64_t end) {
  if (p + step >= end) return {nullptr, nullptr};
  const char* at = reinterpret_cast<const char*>(KvRows(a, p + step));
  return {at, at + step * a.kv->rows.dim(3) * static_cast<int64_t>(sizeof(bf16))};
}

}  // namespace asynctls
