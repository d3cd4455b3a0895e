// SPDX-License-Identifier: Apache-2.0
// Softmax attention over the selected tokens: two passes, fp32.
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/ref/ref_ops.h"

namespace asynctls {
namespace {

// The row [K | V] of one position of a lane.
const bf16* KvRow(const KvView& kv, int64_t lane, int64_t g, int64_t position) {
  const int64_t slot = kv.slot_table(lane, position / kBlockPositions);
  return &kv.rows(slot, g, position % kBlockPositions, 0);
}

void AttendHead(const SparseAttendArgs& a, int64_t s, int64_t g, int64_t h) {
  const int64_t d_count = a.q.dim(2), count = a.selection.token_count(s, g);
  const int32_t* tokens = a.selection.tokens[s][g].data;
  std::vector<float> logit(count), sum(d_count, 0.0f);
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    const bf16* k = KvRow(a.kv, a.rows[s].lane, g, tokens[i]);
    float dot = 0.0f;
    for (int64_t d = 0; d < d_count; ++d) dot += ToFloat(a.q(s, h, d)) * ToFloat(k[d]);
    logit[i] = dot * a.scale;
    top = std::max(top, logit[i]);
  }
  float z = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const bf16* v = KvRow(a.kv, a.rows[s].lane, g, tokens[i]) + d_count;
    const float weight = std::exp(logit[i] - top);
    z += weight;
    for (int64_t d = 0; d < d_count; ++d) sum[d] += weight * ToFloat(v[d]);
  }
  for (int64_t d = 0; d < d_count; ++d) {
    a.out(s, h * d_count + d) = ToBf16(count == 0 ? 0.0f : sum[d] / z);
  }
}

}  // namespace

void RefOps::SparseAttend(const SparseAttendArgs& a) {
  const int64_t groups = a.kv.rows.dim(1), heads = a.q.dim(1) / groups;
  for (int64_t s = 0; s < a.rows.dim(0); ++s) {
    for (int64_t h = 0; h < a.q.dim(1); ++h) AttendHead(a, s, h / heads, h);
  }
}

}  // namespace asynctls
