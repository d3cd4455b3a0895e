// SPDX-License-Identifier: Apache-2.0
// What the ways to attend prompt chunks share: their parameters and how a thread block finds its
// rows. Private to kernels/cuda.
#pragma once

#include <cstdint>

#include "kernels/cuda/state.h"

namespace asynctls {

struct PrefillParams {
  const bf16* q;         // [T, Q, D]
  const bf16* kv;        // [N, G, P, 2D]
  const int32_t* slots;  // [L, M]
  const PrefillSegment* segments;
  bf16* out;            // [T, Q D]
  int64_t table_width;  // M
  int segment_count;
  int groups, heads;  // G, R
  float scale;        // of q . k, times log2(e)
};

// sm_90 with a head dim of 128 (prefill_hopper.cu).
void LaunchPrefillHopper(CudaOps::State& state,
                         const PrefillParams& p,
                         const View<bf16, 4>& kv,
                         int64_t rows);

#ifdef __CUDACC__
// The tile `tile` of `rows` rows each, counted over the segments: its segment and first row; false:
// there is none.
__device__ inline bool FindPrefillTile(
    const PrefillParams& p, int tile, int rows, PrefillSegment* segment, int* first) {
  for (int i = 0; i < p.segment_count; ++i) {
    *segment = p.segments[i];
    const int tiles = (segment->count + rows - 1) / rows;
    if (tile < tiles) {
      *first = tile * rows;
      return true;
    }
    tile -= tiles;
  }
  return false;
}
#endif

}  // namespace asynctls
