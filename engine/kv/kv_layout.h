// SPDX-License-Identifier: Apache-2.0
// Block and byte arithmetic of the KV cache, as pure functions: nobody else multiplies head_dim by
// anything. P = kBlockPositions.
#pragma once

#include <cstdint>

#include "kernels/device/dtype.h"
#include "kernels/ops.h"

namespace asynctls {

// Blocks that hold `positions` positions.
inline constexpr int64_t BlocksFor(int64_t positions) {
  return (positions + kBlockPositions - 1) / kBlockPositions;
}

// One rank's share of the cache. A token of one head is K and V side by side.
struct KvLayout {
  int layers = 0;
  int kv_heads = 0;  // G, of this rank
  int head_dim = 0;  // D

  // K and V of one token and head.
  int64_t RowBytes() const { return int64_t{2} * head_dim * sizeof(bf16); }
  // One block of one layer, all heads.
  int64_t LayerBlockBytes() const { return kBlockPositions * kv_heads * RowBytes(); }
  // One logical block: all layers.
  int64_t BlockBytes() const { return layers * LayerBlockBytes(); }
  // One token: all layers and heads.
  int64_t TokenBytes() const { return layers * kv_heads * RowBytes(); }
};

}  // namespace asynctls
