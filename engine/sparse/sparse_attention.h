// SPDX-License-Identifier: Apache-2.0
// SparseAttention: the attention of one layer, from q, k, v to the heads' outputs: append KV and
// key codes, attend prompt chunks in full, and decode rows in full or over what the two levels
// select. Policy and order are here; the mathematics is in the ops.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "engine/kv/kv_layout.h"
#include "engine/kv/kv_pool.h"
#include "engine/kv/slot_table.h"
#include "engine/sparse/key_index.h"
#include "engine/sparse/row_read.h"
#include "engine/sparse/selection_buffers.h"
#include "kernels/ops.h"

namespace asynctls {

// What attention needs to know of a pass over rows of a step. Rows: prompt chunks first, then
// decode rows in three runs: those that attend densely in every layer, those that select by key
// codes, those that select by the paper's bound. Views lie where the backend computes, but for the
// host's.
struct AttentionBatch {
  View<const int32_t, 1> lanes;      // [T]
  View<const int32_t, 1> positions;  // [T]
  View<const PrefillSegment, 1> segments, host_segments;
  int prefill_rows = 0;
  View<const DecodeRow, 1> rows, host_rows;  // [S], row s being row prefill_rows + s of the pass
  int dense_rows = 0;
  int code_rows = 0;
  bool report_blocks = false;  // keep count of the blocks that decode rows read

  int decode_rows() const { return static_cast<int>(rows.dim(0)); }
  int bound_rows() const { return decode_rows() - dense_rows - code_rows; }
};

template <Ops B>
class SparseAttention {
 public:
  // Requires: what is referred to outlives it.
  SparseAttention(
      B& ops, KvPool& kv, SlotTable& slots, KeyIndex& index, SelectionBuffers& selection)
      : ops_(ops),
        kv_(kv),
        slots_(slots),
        index_(index),
        selection_(selection),
        scale_(1.0f / std::sqrt(static_cast<float>(kv.layout().head_dim))) {}

  // The projected rows of one layer and the norms to be applied to them.
  struct AppendInput {
    View<const bf16, 2> qkv;     // [T, (Q + 2G) D]
    View<const bf16, 1> q_norm;  // [D]
    View<const bf16, 1> k_norm;  // [D]
    float eps;
    View<const float, 2> cos_sin;  // [T, D]
  };
  // Norms and rotates q and k, writes K and V and the key's code, turns the queries that select by
  // code; q goes to q_out [T, Q, D].
  void Append(int layer, const AttentionBatch& batch, const AppendInput& in, View<bf16, 3> q_out) {
    const bool sparse = layer >= index_.shape().first_layer;
    ops_.AppendKv({.qkv = in.qkv,
                   .q_norm = in.q_norm,
                   .k_norm = in.k_norm,
                   .eps = in.eps,
                   .cos_sin = in.cos_sin,
                   .lanes = batch.lanes,
                   .positions = batch.positions,
                   .q_out = q_out,
                   .kv = Kv(layer),
                   .code = sparse ? index_.table(layer) : KeyCodeTable{},
                   .codes = sparse ? index_.codes(layer) : KeyCodes{},
                   .turned = sparse ? selection_.Turned(batch.code_rows) : TurnedQuery{},
                   .turn_begin = batch.prefill_rows + batch.dense_rows,
                   .scale = scale_});
    if constexpr (BoundOps<B>) {
      if (!sparse || !index_.shape().bound) return;
      ops_.BoundAppend({.kv = Kv(layer),
                        .lanes = batch.lanes,
                        .positions = batch.positions,
                        .index = index_.bound(layer)});
    }
  }

  // Attends the prompt chunks; out is [T, Q D].
  void AttendPrefill(int layer,
                     const AttentionBatch& batch,
                     View<const bf16, 3> q,
                     View<bf16, 2> out) {
    if (batch.prefill_rows == 0) return;
    ops_.PrefillAttend({.q = q.Slice(0, batch.prefill_rows),
                        .kv = Kv(layer),
                        .segments = batch.segments,
                        .scale = scale_,
                        .out = out.Slice(0, batch.prefill_rows)});
  }

  // Attends the decode rows that read everything.
  void AttendDense(int layer,
                   const AttentionBatch& batch,
                   View<const bf16, 3> q,
                   View<bf16, 2> out) {
    const int count = DenseRows(layer, batch);
    if (count == 0) return;
    ops_.DecodeAttend({.q = q.Slice(batch.prefill_rows, count),
                       .kv = Kv(layer),
                       .rows = batch.rows.Slice(0, count),
                       .scale = scale_,
                       .out = out.Slice(batch.prefill_rows, count)});
  }

  // Chooses what the other decode rows will read.
  void Select(int layer, const AttentionBatch& batch, View<const bf16, 3> q) {
    if (layer < index_.shape().first_layer) return;
    if (batch.code_rows > 0) SelectByCode(layer, batch);
    if constexpr (BoundOps<B>) {
      if (batch.bound_rows() > 0) SelectByBound(layer, batch, q);
    }
  }

  // Attends over what Select chose.
  void AttendSparse(int layer,
                    const AttentionBatch& batch,
                    View<const bf16, 3> q,
                    View<bf16, 2> out) {
    const int begin = DenseRows(layer, batch);
    const int count = batch.decode_rows() - begin;
    if (count == 0) return;
    ops_.SparseAttend({.q = q.Slice(batch.prefill_rows + begin, count),
                       .kv = Kv(layer),
                       .rows = batch.rows.Slice(begin, count),
                       .selection = SelectionOf(layer, begin, count),
                       .scale = scale_,
                       .out = out.Slice(batch.prefill_rows + begin, count)});
    if (!batch.report_blocks) return;
    ops_.CountBlocks({.selection = SelectionOf(layer, begin, count),
                      .heat = selection_.Heat(begin, count),
                      .add = layer > index_.shape().first_layer});
  }

  // What decode row `row` read in all layers of the step just run, once its results are on the
  // host.
  RowRead Read(const AttentionBatch& batch, int row) const {
    const KvLayout& kv = kv_.layout();
    RowRead read(kv, batch.host_rows[row].length);
    const bool sparse = row >= batch.dense_rows;
    const bool bound = row >= batch.dense_rows + batch.code_rows;
    for (int layer = 0; layer < kv.layers; ++layer) {
      for (int head = 0; head < kv.kv_heads; ++head) {
        if (!sparse || layer < index_.shape().first_layer) {
          read.AddDense();
          continue;
        }
        const SelectionBuffers::Counts c = selection_.counts(SparseIndex(layer), row, head);
        read.AddSparse({.touched = c.touched,
                        .tokens = c.tokens,
                        .kept_blocks = c.blocks,
                        .nan_heads = c.nan_heads},
                       index_.shape(),
                       bound);
      }
    }
    return read;
  }

  // For each block that decode row `row` could read: in what share, of 255, of the layers and KV
  // heads it read some of it; rounded, but at least 1 where it did. Requires: batch.report_blocks.
  std::string BlockHeat(const AttentionBatch& batch, int row) const {
    const KvLayout& kv = kv_.layout();
    const bool sparse = row >= batch.dense_rows && index_.shape().SparseLayers() > 0;
    const int pairs = kv.layers * kv.kv_heads;
    const int dense_pairs = (sparse ? index_.shape().first_layer : kv.layers) * kv.kv_heads;
    std::string heat(static_cast<size_t>(BlocksFor(batch.host_rows[row].length)), '\0');
    for (size_t block = 0; block < heat.size(); ++block) {
      const int selected = sparse ? selection_.HostHeat(row)[static_cast<int64_t>(block)] : 0;
      const int read = dense_pairs + selected;
      const int share = (read * 255 + pairs / 2) / pairs;
      heat[block] = static_cast<char>(read > 0 ? std::max(share, 1) : 0);
    }
    return heat;
  }

  // For calibration: the keys of a layer lie in its KV rows, in the slots of the host's table.
  View<const int32_t, 2> HostSlots() const { return slots_.host(); }
  KvView Kv(int layer) const { return {.rows = kv_.Rows(layer), .slot_table = slots_.view()}; }

 private:
  void SelectByCode(int layer, const AttentionBatch& batch) {
    const auto rows = batch.rows.Slice(batch.dense_rows, batch.code_rows);
    const Selection selection = SelectionOf(layer, batch.dense_rows, batch.code_rows);
    const TurnedQuery turned = selection_.Turned(batch.code_rows);
    ops_.SelectBlocks({.slot_table = slots_.view(),
                       .rows = rows,
                       .codes = index_.codes(layer),
                       .turned = turned,
                       .lag = selection_.lag(SparseIndex(layer)),
                       .out = selection});
    ops_.SelectTokens({.slot_table = slots_.view(),
                       .rows = rows,
                       .codes = index_.codes(layer),
                       .turned = turned,
                       .out = selection});
  }

  void SelectByBound(int layer, const AttentionBatch& batch, View<const bf16, 3> q) {
    const int bound_begin = batch.dense_rows + batch.code_rows;
    const auto rows = batch.rows.Slice(bound_begin, batch.bound_rows());
    const Selection selection = SelectionOf(layer, bound_begin, batch.bound_rows());
    const auto bound_q = q.Slice(batch.prefill_rows + bound_begin, batch.bound_rows());
    ops_.BoundSelectBlocks({.q = bound_q,
                            .slot_table = slots_.view(),
                            .rows = rows,
                            .index = index_.bound(layer),
                            .lag = selection_.lag(SparseIndex(layer)),
                            .out = selection});
    ops_.BoundSelectTokens({.q = bound_q,
                            .slot_table = slots_.view(),
                            .rows = rows,
                            .index = index_.bound(layer),
                            .scale = scale_,
                            .out = selection});
  }

  int SparseIndex(int layer) const { return layer - index_.shape().first_layer; }
  // Decode rows that attend densely in this layer; they come first.
  int DenseRows(int layer, const AttentionBatch& batch) const {
    return layer < index_.shape().first_layer ? batch.decode_rows() : batch.dense_rows;
  }
  Selection SelectionOf(int layer, int begin, int count) const {
    return selection_.Rows(SparseIndex(layer), begin, count);
  }

  B& ops_;
  KvPool& kv_;
  SlotTable& slots_;
  KeyIndex& index_;
  SelectionBuffers& selection_;
  const float scale_;
};

}  // namespace asynctls
