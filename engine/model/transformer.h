// SPDX-License-Identifier: Apache-2.0
// Transformer: the forward pass of Qwen3, one function per sub-layer. The residual stream is bf16.
// A sub-layer of decode rows adds to it inside its last product and norms it inside its first
// (GemmArgs); of prompt rows, and where ranks have to add up in between, it leaves the pair
// (residual, x), which the next norm adds (RmsNormArgs). The roundings, and so the bits, are the
// same.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/model/activations.h"
#include "engine/model/model_config.h"
#include "engine/model/rank_shape.h"
#include "engine/model/step.h"
#include "engine/model/step_clock.h"
#include "engine/model/weights.h"
#include "engine/parallel/communicator.h"
#include "engine/sparse/sparse_attention.h"
#include "kernels/ops.h"

namespace asynctls {

template <Ops B>
class Transformer {
 public:
  // Called after a layer has appended its keys: layer and q [T, Q, D]. For calibration.
  using Observer = std::function<void(int layer, const AttentionBatch&, View<const bf16, 3> q)>;

  // Prepares the weights for the backend. `group` is null for one rank. Requires: what is referred
  // to outlives it.
  Transformer(B& ops,
              const ModelConfig& config,
              const RankShape& shape,
              Weights& weights,
              Activations& activations,
              SparseAttention<B>& attention,
              Communicator* group)
      : ops_(ops),
        config_(config),
        shape_(shape),
        weights_(weights),
        a_(activations),
        attention_(attention),
        group_(group) {
    for (Matrix* matrix : weights_.matrices()) ops_.Prepare(*matrix);
    ops_.Upload(a_.inv_frequency.data, config_.inv_frequency.data(), a_.inv_frequency.bytes());
  }

  // Runs the layers over the rows of `step`. Errors: UNAVAILABLE when the group of ranks is broken.
  absl::Status Forward(const Step& step, StepClock& clock) {
    clock.Enter(StepPhase::kOther);
    const int64_t rows = step.rows();
    decode_ = step.attention.prefill_rows == 0;
    absl::Status status = Embed(step, rows);
    for (int layer = 0; layer < shape_.layers && status.ok(); ++layer) {
      status = AttentionLayer(layer, step.attention, rows, clock);
      if (status.ok()) status = FeedForwardLayer(layer, rows, clock);
    }
    return status;
  }

  // Logits of these rows of the pass last run, [S, V] (columns at and after the vocabulary's size
  // are padding), valid until the next call. Requires: at most Activations::Size::logit_rows rows,
  // the same on every rank. Errors: as Forward.
  absl::StatusOr<View<const float, 2>> Logits(View<const int32_t, 1> rows, StepClock& clock) {
    const int64_t count = rows.dim(0);
    const View<bf16, 2> x = a_.head_x.Slice(0, count);
    const View<bf16, 2> residual = a_.head_residual.Slice(0, count);
    const View<float, 2> part = a_.logits.Slice(0, count);
    if (count == 0) return View<const float, 2>(part);
    clock.Enter(StepPhase::kOther);
    ops_.CopyRows({.src = a_.residual, .rows = rows, .dst = residual});
    if (pending_) {
      ops_.CopyRows({.src = a_.x, .rows = rows, .dst = x});
      Norm(x, residual, weights_.final_norm(), x);
    } else {
      Norm(residual, {}, weights_.final_norm(), x);
    }
    clock.Enter(StepPhase::kGemm);
    ops_.Logits({.x = x, .w = &weights_.head(), .out = part, .decode = decode_});
    clock.Enter(StepPhase::kOther);
    if (group_ == nullptr) return View<const float, 2>(part);
    const absl::Status status = group_->AllGather(part, a_.all_logits.Slice(0, count));
    if (!status.ok()) return status;
    return LastLogits(count);
  }
  // Where the last call of Logits put its first `count` rows.
  View<const float, 2> LastLogits(int64_t count) const {
    return (group_ == nullptr ? a_.logits : a_.all_logits).Slice(0, count);
  }

  // Sees the queries of every layer of the next Forward calls; empty to stop.
  void Observe(Observer observer) { observer_ = std::move(observer); }

 private:
  absl::Status Embed(const Step& step, int64_t rows) {
    const View<bf16, 2> residual = a_.residual.Slice(0, rows);
    ops_.Embed({.ids = step.ids,
                .last_token = step.last_token,
                .table = weights_.embedding(),
                .first_id = shape_.first_id,
                .out = residual});
    pending_ = false;
    ops_.RopeTable({.positions = step.attention.positions,
                    .inv_frequency = a_.inv_frequency,
                    .scale = config_.rope_scale,
                    .cos_sin = a_.cos_sin.Slice(0, rows)});
    return Sum(residual);
  }

  // stream += Wo attention(norm(stream)).
  absl::Status AttentionLayer(int layer,
                              const AttentionBatch& batch,
                              int64_t rows,
                              StepClock& clock) {
    const LayerWeights& w = weights_.layers()[layer];
    const View<bf16, 2> qkv = a_.qkv.Slice(0, rows);
    const View<bf16, 3> q = a_.q.Slice(0, rows);
    const View<bf16, 2> out = a_.attention.Slice(0, rows);
    clock.Enter(StepPhase::kGemm);
    FromStream(w.input_norm, w.qkv, qkv);
    clock.Enter(StepPhase::kOther);
    attention_.Append(layer,
                      batch,
                      {.qkv = qkv,
                       .q_norm = w.q_norm[0],
                       .k_norm = w.k_norm[0],
                       .eps = config_.rms_eps,
                       .cos_sin = a_.cos_sin.Slice(0, rows)},
                      q);
    if (observer_) observer_(layer, batch, q);
    clock.Enter(StepPhase::kAttentionPrefill);
    attention_.AttendPrefill(layer, batch, q, out);
    clock.Enter(StepPhase::kSelect);
    attention_.Select(layer, batch, q);
    clock.Enter(StepPhase::kAttentionDecode);
    attention_.AttendDense(layer, batch, q, out);
    attention_.AttendSparse(layer, batch, q, out);
    clock.Enter(StepPhase::kGemm);
    return ToStream(out, w.out, clock);
  }

  // stream += Wdown swiglu(Wgate_up norm(stream)).
  absl::Status FeedForwardLayer(int layer, int64_t rows, StepClock& clock) {
    const LayerWeights& w = weights_.layers()[layer];
    const View<bf16, 2> inner = a_.inner.Slice(0, rows);
    clock.Enter(StepPhase::kGemm);
    FromStream(w.post_norm, w.gate_up, a_.gate_up.Slice(0, rows), inner);
    return ToStream(inner, w.down, clock);
  }

  // out = norm(stream) w^T, and then the gate if there is one.
  void FromStream(const View<bf16, 2>& norm,
                  const Matrix& w,
                  View<bf16, 2> out,
                  View<bf16, 2> gated = {}) {
    const View<bf16, 2> x = a_.x.Slice(0, out.dim(0));
    const View<bf16, 2> residual = a_.residual.Slice(0, out.dim(0));
    GemmArgs product{.x = x, .w = &w, .out = out, .decode = decode_, .gated = gated};
    if (pending_) {
      Norm(x, residual, norm, x);
    } else {
      product.x = residual;
      product.norm = norm[0];
      product.eps = config_.rms_eps;
      product.normed = x;
    }
    ops_.Gemm(product);
    pending_ = false;
  }

  // stream += in w^T, or the ranks' sum of it.
  absl::Status ToStream(View<const bf16, 2> in, const Matrix& w, StepClock& clock) {
    const View<bf16, 2> x = a_.x.Slice(0, in.dim(0));
    GemmArgs product{.x = in, .w = &w, .out = x, .decode = decode_};
    pending_ = group_ != nullptr || !decode_;
    if (!pending_) product.residual = a_.residual.Slice(0, in.dim(0));
    ops_.Gemm(product);
    clock.Enter(StepPhase::kOther);
    return pending_ ? Sum(x) : absl::OkStatus();
  }

  void Norm(View<const bf16, 2> x,
            View<bf16, 2> residual,
            const View<bf16, 2>& weight,
            View<bf16, 2> out) {
    ops_.RmsNorm(
        {.x = x, .residual = residual, .weight = weight[0], .out = out, .eps = config_.rms_eps});
  }

  // Adds up the ranks' parts.
  absl::Status Sum(View<bf16, 2> x) {
    if (group_ == nullptr) return absl::OkStatus();
    return group_->AllReduceSum({x.data, {x.size()}});
  }

  B& ops_;
  const ModelConfig& config_;
  const RankShape& shape_;
  Weights& weights_;
  Activations& a_;
  SparseAttention<B>& attention_;
  Communicator* const group_;
  Observer observer_;
  bool decode_ = false;   // the rows last run are all decode rows
  bool pending_ = false;  // the stream is residual + x, not residual alone
};

}  // namespace asynctls
