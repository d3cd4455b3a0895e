// SPDX-License-Identifier: Apache-2.0
// Attention of decode rows over their selected tokens: rows of [K | V] gathered one by one.
#include "kernels/cuda/attend.cuh"

namespace asynctls {

void CudaOps::SparseAttend(const SparseAttendArgs& a) {
  if (a.rows.empty()) return;
  AttendParams p = AttendParamsOf(a.q, a.kv, a.rows, a.scale, a.out);
  p.tokens = a.selection.tokens.data;
  p.token_count = a.selection.token_count.data;
  p.max_tokens = a.selection.tokens.dim(2);
  p.split_tokens = 64;
  const int64_t rows = a.rows.dim(0);
  const auto dim = static_cast<int>(a.q.dim(2));
  // Few rows: the second tile of a warp is under way while the first is worked on. Many: the other
  // thread blocks are.
  if (state_->major >= 9 && rows * p.groups * kAttendRanks > 2 * state_->multiprocessors) {
    LaunchAttend<1, true, kAttendRanks>(*state_, p, rows, dim);
  } else if (state_->major >= 9) {
    LaunchAttend<2, true, kAttendRanks>(*state_, p, rows, dim);
  } else {
    LaunchAttend<2, true, 1>(*state_, p, rows, dim);
  }
}

}  // namespace asynctls
