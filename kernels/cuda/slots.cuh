// SPDX-License-Identifier: Apache-2.0
// The slots of a lane's blocks in shared memory: no kernel of a step writes them, so they are there
// when a kernel's wait ends, and a position is one read away from its row.
#pragma once

#include "kernels/cuda/primitives.cuh"
#include "kernels/ops.h"

namespace asynctls {

constexpr int kSlotsInShared = 2048;  // blocks of a table that come

// Where a lane's slots are to be read, `slots` being its row of the table [M]: at `here`, where
// they are copied by all threads (a barrier must follow), or where they are if the table is wider.
__device__ inline const int32_t* FetchSlots(const int32_t* slots,
                                            int64_t table_width,
                                            int length,
                                            int32_t* here) {
  if (table_width > kSlotsInShared) return slots;
  const int blocks = (length + kBlockPositions - 1) / kBlockPositions;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += static_cast<int>(blockDim.x)) {
    here[i] = slots[i];
  }
  return here;
}

}  // namespace asynctls
