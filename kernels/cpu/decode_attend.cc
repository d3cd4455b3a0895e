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
  team.ParallelFor(first[rows] * kv_heads, [&](int64_t i, Scratch& scratch) {
    const int64_t s = std::upper_bound(first, first + rows + 1, i / kv_heads) - first - 1;
    const int64_t within = i - first[s] * kv_heads;
    const int64_t ranges = first[s + 1] - first[s];
    const int64_t g = within / ranges;
    const int64_t length = a.rows[s].length;
    const int64_t begin = within % ranges * AttendRangeSize(length);
    const AttendGroup one{.q = &a.q(s, g * group, 0),
                          .kv = &a.kv,
                          .lane = a.rows[s].lane,
                          .g = g,
                          .group = group,
                          .scale = a.scale};
    AttendRange(one,
                begin,
                std::min(begin + AttendRangeSize(length), length),
                part(s, g, within % ranges),
                scratch);
  });
  team.ParallelFor(rows * kv_heads, 4, [&](int64_t i, Scratch&) {
    const int64_t s = i / kv_heads, g = i % kv_heads;
    MergeParts(part(s, g, 0), first[s + 1] - first[s], group, dim, &a.out(s, g * group * dim));
  });
}

}  // namespace asynctls
