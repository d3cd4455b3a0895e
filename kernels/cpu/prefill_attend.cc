// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/prefill_attend.h"

#include <algorithm>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/attend_range.h"
#include "kernels/cpu/state.h"

namespace asynctls {

void CpuOps::PrefillAttend(const PrefillAttendArgs& a) {
  if (amx::Usable() && a.q.dim(2) % amx::kDepth == 0) {
    amx::PrefillAttend(a, state_->team);
  } else {
    PrefillAttendByRow(a, state_->team);
  }
}

void PrefillAttendByRow(const PrefillAttendArgs& a, ThreadTeam& team) {
  const int64_t kv_heads = a.kv.rows.dim(1);
  const int64_t dim = a.q.dim(2);
  const int64_t group = a.q.dim(1) / kv_heads;
  for (const PrefillSegment& segment : a.segments) {
    // Neighbouring rows read the same KV, one head after the other.
    team.ParallelFor(kv_heads * segment.count, 8, [&](int64_t i, Scratch& scratch) {
      const int64_t g = i / segment.count;
      const int64_t offset = i % segment.count;
      const int64_t length = segment.start + offset + 1;
      const int64_t ranges = AttendRangeCount(length);
      const int64_t step = AttendRangeSize(length);
      const int64_t size = AttendPartSize(group, dim);
      float* parts = scratch.Get<float>(2, ranges * size);
      const AttendHeads one{.q = &a.q(segment.row + offset, g * group, 0),
                            .kv = &a.kv,
                            .lane = segment.lane,
                            .g = g,
                            .heads = 1,
                            .group = group,
                            .scale = a.scale};
      for (int64_t r = 0; r < ranges; ++r) {
        AttendRange(
            one, r * step, std::min((r + 1) * step, length), parts + r * size, size, scratch);
      }
      MergeParts(parts, ranges, group, dim, &a.out(segment.row + offset, g * group * dim));
    });
  }
}

}  // namespace asynctls
