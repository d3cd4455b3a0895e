// SPDX-License-Identifier: Apache-2.0
// Full attention of decode rows.
#include "kernels/cuda/attend.cuh"

namespace asynctls {

void CudaOps::DecodeAttend(const DecodeAttendArgs& a) {
  if (a.rows.empty()) return;
  AttendParams p = AttendParamsOf(a.q, a.kv, a.rows, a.scale, a.out);
  p.split_tokens = 256;
  LaunchAttend<3, false, 1>(*state_, p, a.rows.dim(0), static_cast<int>(a.q.dim(2)));
}

}  // namespace asynctls
