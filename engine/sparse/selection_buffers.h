// SPDX-License-Identifier: Apache-2.0
// SelectionBuffers: the memory that selecting works in, one arena: what was selected, the turned
// queries, the lagged blocks, and the counts of every layer (kept apart, because they are read
// once, at the end of a step).
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
  int lanes = 0;           // L, also the most decode rows of a step
  int64_t max_blocks = 0;  // M
  int64_t max_tokens = 0;  // K, the largest budget
};

class SelectionBuffers {
 public:
  // Per KV head, each [L, G].
  struct Counts {
    View<int32_t, 2> blocks, tokens, touched, nan_heads;
  };

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

  // Layers are numbered from the first sparse one. Rows [begin, begin + count) of the decode rows.
  Selection Rows(int layer, int begin, int count) const {
    const Counts& c = counts_[layer];
    return {.blocks = blocks_.Slice(begin, count),
            .block_count = c.blocks.Slice(begin, count),
            .tokens = tokens_.Slice(begin, count),
            .token_count = c.tokens.Slice(begin, count),
            .touched = c.touched.Slice(begin, count),
            .nan_heads = c.nan_heads.Slice(begin, count)};
  }
  TurnedQuery Turned(int count) const {
    return {.code8 = turned_.code8.Slice(0, count), .scale = turned_.scale.Slice(0, count)};
  }
  // In how many layers and KV heads each block was read, [count, M].
  View<int32_t, 2> Heat(int begin, int count) const { return heat_.Slice(begin, count); }
  View<int32_t, 3> lag(int layer) const { return lag_[layer]; }
  const Counts& counts(int layer) const { return counts_[layer]; }

 private:
  void Carve(const SelectionShape& s, const KeyIndexShape& index, Carver& carver) {
    const int64_t rows = s.lanes;
    const int64_t g = index.kv_heads;
    blocks_ = carver.Take<int32_t, 3>({rows, g, s.max_blocks});
    tokens_ = carver.Take<int32_t, 3>({rows, g, s.max_tokens});
    heat_ = carver.Take<int32_t, 2>({rows, s.max_blocks});
    turned_.code8 = carver.Take<int8_t, 3>({rows, s.query_heads, kCodeDirections});
    turned_.scale = carver.Take<float, 2>({rows, s.query_heads});
    for (int layer = 0; layer < index.SparseLayers(); ++layer) {
      lag_.push_back(carver.Take<int32_t, 3>({rows, g, s.max_blocks + 1}));
      Counts& c = counts_.emplace_back();
      for (View<int32_t, 2>* view : {&c.blocks, &c.tokens, &c.touched, &c.nan_heads}) {
        *view = carver.Take<int32_t, 2>({rows, g});
      }
    }
  }

  Buffer arena_;
  View<int32_t, 3> blocks_;  // [L, G, M]
  View<int32_t, 3> tokens_;  // [L, G, K]
  View<int32_t, 2> heat_;    // [L, M]
  TurnedQuery turned_;
  std::vector<View<int32_t, 3>> lag_;  // per sparse layer, [L, G, M + 1]
  std::vector<Counts> counts_;         // per sparse layer
};

}  // namespace asynctls
