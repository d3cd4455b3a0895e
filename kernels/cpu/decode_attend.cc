// SPDX-License-Identifier: Apache-2.0
// Every row's KV is cut into ranges with fixed borders that all threads share out among them, so
// one row alone uses all cores; then the parts of a row are merged in the order of the ranges.
#include <algorithm>

#include "kernels/cpu/attend_range.h"
#include "kernels/cpu/state.h"

namespace asynctls {

void CpuOps::DecodeAttend(const DecodeAttendArgs& a) {
  ThreadTeam& team = state_->team;
  const int64_t kv_heads = a.kv.rows.dim(1);
  const int64_t dim = a.q.dim(2);
  const int64_t group = a.q.dim(1) / kv_heads;
  const int64_t size = AttendPartSize(group, dim);
  const int64_t rows = a.rows.dim(0);
  // Row s owns the ranges [first[s], first[s + 1]) of each KV head.
  int64_t* first = team.scratch().Get<int64_t>(2, rows + 1);
  first[0] = 0;
  for (int64_t s = 0; s < rows; ++s) {
    first[s + 1] = first[s] + AttendRangeCount(a.rows[s].length);
  }
  // Head by head, so that the parts to merge lie side by side.
  float* parts = team.scratch().Get<float>(3, first[rows] * kv_heads * size);
  const auto part = [&](int64_t s, int64_t g, int64_t range) {
    return parts + (first[s] * kv_heads + g * (first[s + 1] - first[s]) + range) * size;
  };
  // All KV heads of a range together read memory in its order; apart, they are more to share.
  const int64_t together = first[rows] >= 4 * team.count() ? kv_heads : 1;
  const int64_t pieces = kv_heads / together;
  team.ParallelFor(first[rows] * pieces, [&](int64_t i, Scratch& scratch) {
    const int64_t s = std::upper_bound(first, first + rows + 1, i / pieces) - first - 1;
    const int64_t range = i / pieces - first[s], g = i % pieces;
    const int64_t length = a.rows[s].length;
    const int64_t begin = range * AttendRangeSize(length);
    const AttendHeads heads{.q = &a.q(s, g * group, 0),
                            .kv = &a.kv,
                            .lane = a.rows[s].lane,
                            .g = g,
                            .heads = together,
                            .group = group,
                            .scale = a.scale};
    AttendRange(heads,
                begin,
                std::min(begin + AttendRangeSize(length), length),
                part(s, g, range),
                part(s, 1, 0) - part(s, 0, 0),
                scratch);
  });
  team.ParallelFor(rows * kv_heads, 4, [&](int64_t i, Scratch&) {
    const int64_t s = i / kv_heads, g = i % kv_heads;
    MergeParts(part(s, g, 0), first[s + 1] - first[s], group, dim, &a.out(s, g * group * dim));
  });
}

}  // namespace asynctls
