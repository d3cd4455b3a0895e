// SPDX-License-Identifier: Apache-2.0
// SelectionResults: what a step's decode rows selected, as far as the host is told: counts of every
// layer, and on request the blocks that were read. The host reads them once, at the end of the step
// (the counts lie together, without gaps, whatever the number of rows).
#pragma once

#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/sparse/key_index.h"
#include "engine/sparse/selection_buffers.h"
#include "kernels/device/carver.h"
#include "kernels/device/mirror.h"
#include "kernels/ops.h"

namespace asynctls {

class SelectionResults {
 public:
  // What decode row s of the step selected, per KV head.
  struct Counts {
    int32_t blocks, tokens, touched, nan_heads;
  };

  static int64_t Bytes(const SelectionShape& shape, const KeyIndexShape& index) {
    SelectionResults measured(shape, index);
    Carver carver;
    measured.Carve(carver);
    return carver.bytes();
  }
  // Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<SelectionResults> Create(const SelectionShape& shape,
                                                 const KeyIndexShape& index,
                                                 MemoryKind kind) {
    return SelectionResults(shape, index).On(Mirror::Create(kind, Bytes(shape, index)));
  }
  // One for another step under way, as Mirror::Twin.
  absl::StatusOr<SelectionResults> Twin() const {
    return SelectionResults(shape_, index_).On(memory_.Twin());
  }

  // Begins a step of `rows` decode rows.
  void Start(int rows) { rows_ = rows; }
  // Brings the counts to the host, and what Heat shows if asked, in the stream's order.
  template <class B>
  void Download(B& ops, bool heat) const {
    memory_.Download(ops, counts_.Slice(0, CountsOf(index_.SparseLayers(), 0).data - counts_.data));
    if (heat) memory_.Download(ops, heat_.Slice(0, rows_));
  }

  // Layers are numbered from the first sparse one. Has the ops write the counts of rows [begin,
  // begin + count) of the decode rows here.
  void Collect(int layer, int begin, int count, Selection& selection) const {
    const auto counts = [&](int kind) {
      return memory_.Device(CountsOf(layer, kind)).Slice(begin, count);
    };
    selection.block_count = counts(0);
    selection.token_count = counts(1);
    selection.touched = counts(2);
    selection.nan_heads = counts(3);
  }
  // In how many layers and KV heads each block was read, [count, M]; what the host reads of row s,
  // [M].
  View<int32_t, 2> Heat(int begin, int count) const {
    return memory_.Device(heat_).Slice(begin, count);
  }
  View<const int32_t, 1> HostHeat(int row) const { return heat_[row]; }
  // On the host, after Download.
  Counts counts(int layer, int row, int head) const {
    const auto count = [&](int kind) { return CountsOf(layer, kind)(row, head); };
    return {.blocks = count(0), .tokens = count(1), .touched = count(2), .nan_heads = count(3)};
  }

 private:
  static constexpr int kCounts = 4;  // blocks, tokens, touched, nan_heads

  SelectionResults(const SelectionShape& shape, const KeyIndexShape& index)
      : shape_(shape), index_(index) {}

  absl::StatusOr<SelectionResults> On(absl::StatusOr<Mirror> memory) && {
    if (!memory.ok()) return memory.status();
    memory_ = *std::move(memory);
    Carver carver(memory_.host());
    Carve(carver);
    return std::move(*this);
  }
  void Carve(Carver& carver) {
    heat_ = carver.Take<int32_t, 2>({shape_.rows, shape_.max_blocks});
    counts_ = carver.Take<int32_t, 1>(
        {int64_t{index_.SparseLayers()} * kCounts * shape_.rows * index_.kv_heads});
  }
  // One layer's counts of one kind, [rows of the step, G], on the host.
  View<int32_t, 2> CountsOf(int layer, int kind) const {
    const int64_t size = int64_t{rows_} * index_.kv_heads;
    return {counts_.data + (layer * kCounts + kind) * size, {rows_, index_.kv_heads}};
  }

  SelectionShape shape_;
  KeyIndexShape index_;
  Mirror memory_;
  int rows_ = 0;
  View<int32_t, 2> heat_;    // [S, M]
  View<int32_t, 1> counts_;  // [layers, kCounts, rows of the step, G]
};

}  // namespace asynctls
