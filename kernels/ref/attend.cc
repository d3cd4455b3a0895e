// SPDX-License-Identifier: Apache-2.0
// Dense attention, of prompt chunks and of decode rows: both are softmax attention of one query
// over the first `length` positions of a lane.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/ref/math.h"
#include "kernels/ref/ref_ops.h"

namespace asynctls {
namespace {

// out [D] of query head h; zeros for length 0.
void AttendHead(const bf16* q,
                const KvView& kv,
                int64_t lane,
                int64_t g,
                int64_t length,
                float scale,
                bf16* out) {
  const int64_t dim = kv.rows.dim(3) / 2;
  auto row = [&](int64_t p) {
    return &kv.rows(kv.slot_table(lane, p / kBlockPositions), g, p % kBlockPositions, 0);
  };
  std::vector<float> weights(static_cast<size_t>(length));
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t p = 0; p < length; ++p) {
    weights[p] = ref::Dot(q, row(p), dim) * scale;
    largest = std::max(largest, weights[p]);
  }
  float total = 0;
  std::vector<float> sum(static_cast<size_t>(dim));
  for (int64_t p = 0; p < length; ++p) {
    const float weight = std::exp(weights[p] - largest);
    const bf16* value = row(p) + dim;
    total += weight;
    for (int64_t d = 0; d < dim; ++d) sum[d] += weight * ToFloat(value[d]);
  }
  for (int64_t d = 0; d < dim; ++d) out[d] = ToBf16(length == 0 ? 0.0f : sum[d] / total);
}

void AttendRow(
    View<const bf16, 2> q, const KvView& kv, int64_t lane, int64_t length, float scale, bf16* out) {
  const int64_t group = q.dim(0) / kv.rows.dim(1);
  for (int64_t h = 0; h < q.dim(0); ++h) {
    AttendHead(q[h].data, kv, lane, h / group, length, scale, out + h * q.dim(1));
  }
}

}  // namespace

void RefOps::PrefillAttend(const PrefillAttendArgs& a) {
  for (const PrefillSegment& s : a.segments) {
    for (int32_t i = 0; i < s.count; ++i) {
      AttendRow(a.q[s.row + i], a.kv, s.lane, s.start + i + 1, a.scale, a.out[s.row + i].data);
    }
  }
}

void RefOps::DecodeAttend(const DecodeAttendArgs& a) {
  for (int64_t s = 0; s < a.rows.dim(0); ++s) {
    AttendRow(a.q[s], a.kv, a.rows[s].lane, a.rows[s].length, a.scale, a.out[s].data);
  }
}

}  // namespace asynctls
