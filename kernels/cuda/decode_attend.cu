// SPDX-License-Identifier: Apache-2.0
// Full attention of decode rows.
#include "kernels/cuda/attend.cuh"
#include "kernels/ref/exact.h"

namespace asynctls {

void CudaOps::DecodeAttend(const DecodeAttendArgs& a) {
  if (a.rows.empty()) return;
  const auto groups = static_cast<int>(a.kv.rows.dim(1));
  AttendParams p{};
  p.q = a.q.data;
  p.kv = a.kv.rows.data;
  p.slots = a.kv.slot_table.data;
  p.rows = a.rows.data;
  p.out = a.out.data;
  p.table_width = a.kv.slot_table.dim(1);
  p.groups = groups;
  p.heads = static_cast<int>(a.q.dim(1)) / groups;
  p.split_tokens = 256;
  p.scale = a.scale * kLog2E;
  LaunchAttend<3, false, 1>(*state_, p, a.rows.dim(0), static_cast<int>(a.q.dim(2)));
}

}  // namespace asynctls
