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

// Positions of a range: its borders are multiples of it, wherever a row ends.
inline constexpr int64_t kAttendRange = 512;

// Writes the part of positions [begin, end). Requires: begin a multiple of kBlockPositions, begin <
// end. Uses places 0 and 1 of `scratch`.
void AttendRange(const AttendGroup& a, int64_t begin, int64_t end, float* part, Scratch& scratch);

// out [group, dim] of `count` parts that lie side by side, in their order; overwrites the first. None
// gives zeros.
void MergeParts(float* parts, int64_t count, int64_t group, int64_t dim, bf16* out);

}  // namespace asynctls
