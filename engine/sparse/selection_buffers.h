// SPDX-License-Identifier: Apache-2.0
// SelectionBuffers: the memory that selecting works in, one arena: what was selected, the turned
// queries and the lagged blocks. What the host is told is in selection_results.h.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/sparse/key_index.h"
#include "kernels/device/buffer.h"
#include "kernels/device/carver.h"
#include "kernels/ops.h"

namespace asynctls {

struct SelectionShape {
  int query_heads = 0;     // Q, of this rank
  int lanes = 0;           // L
  int64_t rows = 0;        // most decode rows of a step, padding included
  int64_t max_blocks = 0;  // M
  int64_t max_tokens = 0;  // K, the largest budget
};

class SelectionBuffers {
 public:
  static int64_t Bytes(const SelectionShape& shape, const KeyIndexShape& index) {
    SelectionBuffers measured;
    Carver carver;
    measured.Carve(shape, index, carver);
    return carver.bytes();
  }
  // Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<SelectionBuffers> Create(const SelectionShape& shape,
                                                 const KeyIndexShape& index,
                                                 MemoryKind kind) {
    absl::StatusOr<Buffer> arena = Buffer::Allocate(kind, Bytes(shape, index));
    if (!arena.ok()) return arena.status();
    SelectionBuffers buffers;
    buffers.arena_ = *std::move(arena);
    Carver carver(buffers.arena_);
    buffers.Carve(shape, index, carver);
    return buffers;
  }

  // What rows [begin, begin + count) of the decode rows select, without the counts.
  Selection Rows(int begin, int count) const {
    Selection selection;
    selection.blocks = blocks_.Slice(begin, count);
    selection.tokens = tokens_.Slice(begin, count);
    return selection;
  }
  TurnedQuery Turned(int count) const {
    return {.code8 = turned_.code8.Slice(0, count), .scale = turned_.scale.Slice(0, count)};
  }
  // Layers are numbered from the first sparse one.
  View<int32_t, 3> lag(int layer) const { return lag_[layer]; }

 private:
  void Carve(const SelectionShape& s, const KeyIndexShape& index, Carver& carver) {
    const int64_t g = index.kv_heads;
    blocks_ = carver.Take<int32_t, 3>({s.rows, g, s.max_blocks});
    tokens_ = carver.Take<int32_t, 3>({s.rows, g, s.max_tokens});
    turned_.code8 = carver.Take<int8_t, 3>({s.rows, s.query_heads, kCodeDirections});
    turned_.scale = carver.Take<float, 2>({s.rows, s.query_heads});
    lag_.clear();
    for (int layer = 0; layer < index.SparseLayers(); ++layer) {
      lag_.push_back(carver.Take<int32_t, 3>({s.lanes, g, s.max_blocks + 1}));
    }
  }

  Buffer arena_;
  View<int32_t, 3> blocks_;  // [S, G, M]
  View<int32_t, 3> tokens_;  // [S, G, K]
  TurnedQuery turned_;
  std::vector<View<int32_t, 3>> lag_;  // per sparse layer, [L, G, M + 1]
};

}  // namespace asynctls
