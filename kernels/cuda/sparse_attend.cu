// SPDX-License-Identifier: Apache-2.0
// Attention of decode rows over their selected tokens: rows of [K | V] gathered one by one.
#include "kernels/cuda/attend.cuh"
#include "kernels/ref/exact.h"

namespace asynctls {

void CudaOps::SparseAttend(const SparseAttendArgs& a) {
  if (a.rows.empty()) return;
  const auto groups = static_cast<int>(a.kv.rows.dim(1));
  AttendParams p{};
  p.q = a.q.data;
  p.kv = a.kv.rows.data;
  p.slots = a.kv.slot_table.data;
  p.rows = a.rows.data;
  p.tokens = a.selection.tokens.data;
  p.token_count = a.selection.token_count.data;
  p.out = a.out.data;
  p.table_width = a.kv.slot_table.dim(1);
  p.max_tokens = a.selection.tokens.dim(2);
  p.groups = groups;
  p.heads = static_cast<int>(a.q.dim(1)) / groups;
  p.split_tokens = 64;
  const int64_t rows = a.rows.dim(0), dim = a.q.dim(2);
  p.scale = a.scale * kLog2E;
  // Few rows: the second tile of a warp is under way while the first is worked on. Many: the next
  // thread block is.
  if (state_->major >= 9 && rows * groups * kAttendRanks > 2 * state_->multiprocessors) {
    LaunchAttend<1, true, kAttendRanks>(*state_, p, rows, static_cast<int>(dim));
  } else if (state_->major >= 9) {
    LaunchAttend<2, true, kAttendRanks>(*state_, p, rows, static_cast<int>(dim));
  } else {
    LaunchAttend<2, true, 1>(*state_, p, rows, static_cast<int>(dim));
  }
}

}  // namespace asynctls
