// SPDX-License-Identifier: Apache-2.0
// SelectionBuffers: the memory that selecting works in, one arena: what was selected, the turned
// queries, the lagged blocks, and the counts of every layer, which the host reads once, at the end
// of a step (they lie together, without gaps, whatever the number of rows).
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/sparse/key_index.h"
#include "kernels/device/buffer.h"
#include "kernels/device/carver.h"
#include "kernels/device/mirror.h"
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
  // What decode row s of the step last run selected, per KV head.
  struct Counts {
    int32_t blocks, tokens, touched, nan_heads;
  };

  static int64_t Bytes(const SelectionShape& shape, const KeyIndexShape& index) {
    SelectionBuffers measured;
    Carver carver;
    measured.CarveWork(shape, index, carver);
    measured.CarveResults(shape, index, carver);
    return carver.bytes();
  }
  // Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<SelectionBuffers> Create(const SelectionShape& shape,
                                                 const KeyIndexShape& index,
                                                 MemoryKind kind) {
    SelectionBuffers buffers;
    Carver work, results;
    buffers.CarveWork(shape, index, work);
    buffers.CarveResults(shape, index, results);
    absl::StatusOr<Buffer> arena = Buffer::Allocate(kind, work.bytes());
    if (!arena.ok()) return arena.status();
    absl::StatusOr<Mirror> mirror = Mirror::Create(kind, results.bytes());
    if (!mirror.ok()) return mirror.status();
    buffers.work_ = *std::move(arena);
    buffers.results_ = *std::move(mirror);
    Carver into_work(buffers.work_), into_results(buffers.results_.host());
    buffers.CarveWork(shape, index, into_work);
    buffers.CarveResults(shape, index, into_results);
    return buffers;
  }

  // Begins a step of `rows` decode rows.
  void Start(int rows) { rows_ = rows; }
  // Brings the counts to the host, and what Heat shows if asked, by the backend's next Wait.
  template <class B>
  void Download(B& ops, bool heat) const {
    results_.Download(ops, counts_.Slice(0, CountsOf(layers_, 0).data - counts_.data));
    if (heat) results_.Download(ops, heat_.Slice(0, rows_));
  }

  // Layers are numbered from the first sparse one. Rows [begin, begin + count) of the decode rows.
  Selection Rows(int layer, int begin, int count) const {
    const auto counts = [&](int kind) {
      return results_.Device(CountsOf(layer, kind)).Slice(begin, count);
    };
    return {.blocks = blocks_.Slice(begin, count),
            .block_count = counts(0),
            .tokens = tokens_.Slice(begin, count),
            .token_count = counts(1),
            .touched = counts(2),
            .nan_heads = counts(3)};
  }
  TurnedQuery Turned(int count) const {
    return {.code8 = turned_.code8.Slice(0, count), .scale = turned_.scale.Slice(0, count)};
  }
  // In how many layers and KV heads each block was read, [count, M]; what the host reads of row s,
  // [M].
  View<int32_t, 2> Heat(int begin, int count) const {
    return results_.Device(heat_).Slice(begin, count);
  }
  View<const int32_t, 1> HostHeat(int row) const { return heat_[row]; }
  View<int32_t, 3> lag(int layer) const { return lag_[layer]; }
  // On the host, after Download.
  Counts counts(int layer, int row, int head) const {
    const auto count = [&](int kind) { return CountsOf(layer, kind)(row, head); };
    return {.blocks = count(0), .tokens = count(1), .touched = count(2), .nan_heads = count(3)};
  }

 private:
  static constexpr int kCounts = 4;  // blocks, tokens, touched, nan_heads

  void CarveWork(const SelectionShape& s, const KeyIndexShape& index, Carver& carver) {
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
  void CarveResults(const SelectionShape& s, const KeyIndexShape& index, Carver& carver) {
    heads_ = index.kv_heads;
    layers_ = index.SparseLayers();
    heat_ = carver.Take<int32_t, 2>({s.rows, s.max_blocks});
    counts_ = carver.Take<int32_t, 1>({int64_t{layers_} * kCounts * s.rows * heads_});
  }
  // One layer's counts of one kind, [rows of the step, G], on the host.
  View<int32_t, 2> CountsOf(int layer, int kind) const {
    const int64_t size = int64_t{rows_} * heads_;
    return {counts_.data + (layer * kCounts + kind) * size, {rows_, heads_}};
  }

  Buffer work_;
  Mirror results_;
  int layers_ = 0, heads_ = 0, rows_ = 0;
  View<int32_t, 3> blocks_;  // [S, G, M]
  View<int32_t, 3> tokens_;  // [S, G, K]
  TurnedQuery turned_;
  std::vector<View<int32_t, 3>> lag_;  // per sparse layer, [L, G, M + 1]
  View<int32_t, 2> heat_;              // [S, M]
  View<int32_t, 1> counts_;            // [layers, kCounts, rows of the step, G]
};

}  // namespace asynctls
