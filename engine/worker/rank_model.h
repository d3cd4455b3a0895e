// SPDX-License-Identifier: Apache-2.0
// RankModel: everything one rank owns - ops, weights, KV, index, buffers - built in order and run
// one plan at a time. No threads of its own: LocalWorker gives it one.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/base/logging.h"
#include "engine/base/safetensors.h"
#include "engine/model/transformer.h"
#include "engine/parallel/gloo_communicator.h"
#include "engine/parallel/staged_communicator.h"
#include "engine/sparse/calibration.h"
#include "engine/worker/backend.h"
#include "engine/worker/rank_plan.h"
#include "engine/worker/sampling_inputs.h"

namespace asynctls {

template <Ops B>
class RankModel {
 public:
  // Loads and allocates all of a rank but the key code tables. Fills model, device, blocks, bytes,
  // memory and startup of `reply`. Errors: as Worker::Init.
  static absl::StatusOr<std::unique_ptr<RankModel>> Create(const v1::InitRequest& request,
                                                           Backend<B> backend,
                                                           v1::InitReply& reply) {
    std::unique_ptr<RankModel> model(new RankModel());
    const absl::Status status = model->Build(request, backend, reply);
    if (!status.ok()) return status;
    return model;
  }

  // Runs one step. Errors: INVALID_ARGUMENT for a plan that breaks the contract, UNAVAILABLE for a
  // broken group; the rank is then of no more use.
  absl::StatusOr<v1::StepResult> Run(const v1::StepPlan& plan) {
    clock_.Start(StepPhase::kInputs);
    absl::Status status = lanes_->Apply(plan, *slots_);
    if (!status.ok()) return status;
    slots_->Upload(*ops_);
    for (const v1::LaneStart& start : plan.starts()) StartLane(start);
    const Steps steps = inputs_->Pack(plan, *lanes_);
    sampling_->Pack(plan, *lanes_, *inputs_);
    inputs_->Upload(*ops_);
    sampling_->Upload(*ops_);
    bool heat = false;
    for (int pass = 0; pass < kPasses; ++pass) {
      if (steps[pass].rows() == 0) continue;
      const AttentionBatch& batch = steps[pass].attention;
      heat = heat || (batch.report_blocks && batch.decode_rows() > 0);
      selection_->Start(batch.decode_rows());
      status = RunPass(pass, steps[pass]);
      if (!status.ok()) return status;
    }
    sampling_->Download(*ops_);
    selection_->Download(*ops_, heat);
    clock_.Enter(StepPhase::kDevice);
    ops_->Wait();
    clock_.Enter(StepPhase::kOther);
    return Result(plan, steps);
  }

  // Logits of the sampled rows of the last pass that had any, in the plan's order, where the
  // backend computes.
  View<const float, 2> logits() const { return logits_; }

  // Of the checkpoint, the same on every rank: what a calibration file must have been made for.
  std::string fingerprint() const {
    std::vector<std::vector<bf16>> norms;
    const auto read = [&](const View<bf16, 2>& norm) {
      norms.emplace_back(static_cast<size_t>(norm.size()));
      ops_->Download(norms.back().data(), norm.data, norm.bytes());
    };
    read(weights_->final_norm());
    for (const LayerWeights& layer : weights_->layers()) {
      read(layer.input_norm);
      read(layer.k_norm);
    }
    ops_->Wait();
    return CheckpointFingerprint(config_, norms);
  }
  // The tables of `groups` KV heads of this model.
  KeyCodeShape CodeShape(int groups) const {
    KeyCodeShape shape;
    shape.layers = config_.layers;
    shape.groups = groups;
    shape.head_dim = config_.head_dim;
    shape.channels = plan_.index.bound_channels;
    return shape;
  }

  const RankPlan& plan() const { return plan_; }
  B& ops() { return *ops_; }
  KeyIndex& index() { return *index_; }
  SparseAttention<B>& attention() { return *attention_; }
  Transformer<B>& transformer() { return *transformer_; }

 private:
  RankModel() = default;

  absl::Status Build(const v1::InitRequest& request, Backend<B>& backend, v1::InitReply& reply) {
    auto begin = std::chrono::steady_clock::now();
    const auto phase_done = [&](const char* name) {
      const auto now = std::chrono::steady_clock::now();
      v1::InitReply::Phase* phase = reply.add_startup();
      phase->set_name(name);
      phase->set_seconds(std::chrono::duration<double>(now - begin).count());
      begin = now;
    };
    absl::StatusOr<ModelConfig> config = LoadModelConfig(request.model_dir());
    if (!config.ok()) return config.status();
    config_ = *std::move(config);
    absl::StatusOr<RankPlan> plan = PlanRank(request, config_, backend.traits());
    if (!plan.ok()) return plan.status();
    plan_ = *std::move(plan);
    absl::Status status = CheckFits(plan_, backend.available);
    if (!status.ok()) return status;
    absl::StatusOr<std::unique_ptr<B>> ops = backend.make(plan_);
    if (!ops.ok()) return ops.status();
    ops_ = *std::move(ops);
    phase_done("config");
    status = LoadWeights(request);
    if (!status.ok()) return status;
    phase_done("weights");
    status = Allocate();
    if (!status.ok()) return status;
    phase_done("memory");
    if (plan_.shard.size > 1) {
      absl::StatusOr<std::unique_ptr<GlooCommunicator>> group =
          GlooCommunicator::Connect(plan_.shard, request.rendezvous(), absl::Minutes(10));
      if (!group.ok()) return group.status();
      group_ = *std::move(group);
      if constexpr (B::kMemory == MemoryKind::kDevice) {
        group_ = std::make_unique<StagedCommunicator<B>>(*ops_, std::move(group_));
      }
      phase_done("connect ranks");
    }
    attention_.emplace(*ops_, *kv_, *slots_, *index_, *selection_);
    transformer_.emplace(
        *ops_, config_, plan_.shape, *weights_, *activations_, *attention_, group_.get());
    phase_done("prepare weights");
    Describe(request, reply);
    return absl::OkStatus();
  }

  absl::Status LoadWeights(const v1::InitRequest& request) {
    if (request.weights() == v1::WEIGHT_SOURCE_SYNTHETIC) {
      return Keep(Weights::Synthetic(config_,
                                     plan_.shard,
                                     request.synthetic_seed(),
                                     B::kMemory,
                                     [&](const FillRandomArgs& a) { ops_->FillRandom(a); }),
                  weights_);
    }
    absl::StatusOr<TensorSource> source = TensorSource::OpenCheckpoint(request.model_dir());
    if (!source.ok()) return source.status();
    const auto send = [&](void* to, const void* from, int64_t bytes) {
      ops_->Upload(to, from, bytes);
      ops_->Wait();
    };
    return Keep(Weights::Load(config_, plan_.shard, *source, B::kMemory, send), weights_);
  }

  absl::Status Allocate() {
    constexpr MemoryKind kKind = B::kMemory;
    absl::Status status = Keep(KvPool::Create(plan_.kv, plan_.blocks, kKind), kv_);
    if (status.ok()) {
      status =
          Keep(SlotTable::Create(plan_.lanes.lanes, plan_.max_blocks, plan_.blocks, kKind), slots_);
    }
    if (status.ok()) status = Keep(KeyIndex::Create(plan_.index, plan_.blocks, kKind), index_);
    if (status.ok()) {
      status = Keep(SelectionBuffers::Create(plan_.selection, plan_.index, kKind), selection_);
    }
    if (status.ok()) {
      status = Keep(Activations::Create(plan_.shape, plan_.activations, kKind), activations_);
    }
    if (status.ok()) status = Keep(StepInputs::Create(plan_.inputs, kKind), inputs_);
    if (status.ok()) status = Keep(SamplingInputs::Create(plan_.sampling, kKind), sampling_);
    lanes_.emplace(plan_.lanes);
    return status;
  }

  template <typename T>
  static absl::Status Keep(absl::StatusOr<T> made, std::optional<T>& member) {
    if (made.ok()) member.emplace(*std::move(made));
    return made.status();
  }

  void Describe(const v1::InitRequest& request, v1::InitReply& reply) const {
    *reply.mutable_model() = DescribeModel(request, config_, plan_);
    reply.set_device(ops_->Describe());
    reply.set_blocks(static_cast<uint32_t>(plan_.blocks));
    reply.set_block_positions(kBlockPositions);
    reply.set_kv_bytes_per_token(static_cast<uint64_t>(plan_.kv.TokenBytes()));
    reply.set_code_bytes_per_token(static_cast<uint64_t>(plan_.index.CodeBytesPerToken()));
    for (const RankPlan::Memory& m : plan_.memory) {
      v1::InitReply::Memory* row = reply.add_memory();
      row->set_what(m.what);
      row->set_bytes(static_cast<uint64_t>(m.bytes));
    }
  }

  void StartLane(const v1::LaneStart& start) {
    std::optional<StartHistoryArgs> history = sampling_->Start(start);
    if (!history.has_value()) return;
    history->prompt_ids = Lend(*ops_, sampling_->ids(), history->prompt_ids);
    ops_->StartHistory(*history);
  }

  // The rows of one pass, from tokens to tokens. Decode rows on their own are replayed, where
  // nothing in between needs the host: passes of the same sizes differ in what memory holds only.
  absl::Status RunPass(int pass, const Step& step) {
    const int64_t sampled = sampling_->sampled_rows(pass).dim(0);
    if (pass != kDecodePass || group_ != nullptr || sampling_->prompt_tiles(pass) > 0) {
      const absl::Status status = Compute(pass, step);
      if (status.ok() && sampled > 0) logits_ = transformer_->LastLogits(sampled);
      return status;
    }
    const auto size = [](int64_t rows, int shift) { return static_cast<uint64_t>(rows) << shift; };
    const uint64_t key = size(step.rows(), 0) | size(step.attention.dense_rows, 16) |
                         size(sampled, 32) | size(sampling_->TopIds({}, pass).rows.dim(0) > 0, 48) |
                         size(step.attention.report_blocks, 49);
    clock_.Enter(StepPhase::kOther);
    absl::Status status;
    ops_->Replay(key, [&] { status = Compute(pass, step); });
    if (sampled > 0) logits_ = transformer_->LastLogits(sampled);
    return status;
  }

  absl::Status Compute(int pass, const Step& step) {
    absl::Status status = transformer_->Forward(step, clock_);
    if (status.ok()) status = ScorePrompts(pass);
    if (status.ok()) status = Sample(pass);
    return status;
  }

  // Log-probabilities of prompt tokens, by tiles of rows so that no long prompt needs all its
  // logits at once. Every rank computes its part of them, rank 0 reads them.
  absl::Status ScorePrompts(int pass) {
    for (int64_t tile = 0; tile < sampling_->prompt_tiles(pass); ++tile) {
      absl::StatusOr<View<const float, 2>> logits =
          transformer_->Logits(sampling_->PromptRows(tile, pass), clock_);
      if (!logits.ok()) return logits.status();
      if (plan_.shard.rank != 0) continue;
      clock_.Enter(StepPhase::kSample);
      ops_->LogProbs(sampling_->PromptLogProbs(tile, *logits, pass));
    }
    return absl::OkStatus();
  }

  // Rank 0 samples; the others learn the tokens.
  absl::Status Sample(int pass) {
    const View<const int32_t, 1> rows = sampling_->sampled_rows(pass);
    absl::StatusOr<View<const float, 2>> logits = transformer_->Logits(rows, clock_);
    if (!logits.ok()) return logits.status();
    if (rows.dim(0) == 0) return absl::OkStatus();
    clock_.Enter(StepPhase::kSample);
    if (plan_.shard.rank == 0) {
      ops_->Sample(sampling_->Sampling(*logits, inputs_->last_token(), pass));
      ops_->LogProbs(sampling_->TopIds(*logits, pass));
    }
    return group_ == nullptr ? absl::OkStatus() : ShareTokens(pass);
  }

  absl::Status ShareTokens(int pass) {
    const View<int32_t, 1> tokens = sampling_->host_tokens(pass);
    if (plan_.shard.rank == 0) sampling_->DownloadTokens(*ops_, pass);
    ops_->Wait();
    const absl::Status status = group_->Broadcast(tokens);
    if (!status.ok() || plan_.shard.rank == 0) return status;
    for (int64_t i = 0; i < tokens.dim(0); ++i) {
      const int32_t lane = sampling_->host_rows(pass)[i].lane;
      ops_->Upload(inputs_->last_token().data + lane, tokens.data + i, sizeof(int32_t));
    }
    return absl::OkStatus();
  }

  v1::StepResult Result(const v1::StepPlan& plan, const Steps& steps) {
    v1::StepResult result;
    result.set_step(plan.step());
    sampling_->Report(result);
    for (const Step& step : steps) Account(step.attention, result);
    clock_.Enter(StepPhase::kOther);
    for (size_t i = 0; i < kStepPhaseNames.size(); ++i) {
      v1::StepResult::Phase* phase = result.add_phases();
      phase->set_name(kStepPhaseNames[i]);
      phase->set_seconds(clock_.seconds()[i]);
    }
    return result;
  }

  // Adds what the decode rows read.
  void Account(const AttentionBatch& batch, v1::StepResult& result) const {
    uint64_t nan_heads = result.nan_heads();
    for (int row = 0; row < batch.decode_rows(); ++row) {
      if (batch.host_rows[row].length == 0) continue;
      const RowRead read = attention_->Read(batch, row);
      v1::LaneRead* out = result.add_reads();
      out->set_lane(static_cast<uint32_t>(batch.host_rows[row].lane));
      out->set_mode(inputs_->mode(row));
      v1::KvRead& kv = *out->mutable_read();
      kv.set_blocks(static_cast<uint64_t>(read.blocks));
      kv.set_tokens(static_cast<uint64_t>(read.tokens));
      kv.set_bytes(static_cast<uint64_t>(read.bytes));
      kv.set_dense_blocks(static_cast<uint64_t>(read.dense_blocks));
      kv.set_dense_tokens(static_cast<uint64_t>(read.dense_tokens));
      kv.set_dense_bytes(static_cast<uint64_t>(read.dense_bytes));
      if (batch.report_blocks) out->set_block_heat(attention_->BlockHeat(batch, row));
      nan_heads += static_cast<uint64_t>(read.nan_heads);
    }
    result.set_nan_heads(nan_heads);
  }

  // In order of construction; each refers only to those above.
  std::unique_ptr<B> ops_;
  ModelConfig config_;
  RankPlan plan_;
  std::optional<Weights> weights_;
  std::optional<KvPool> kv_;
  std::optional<SlotTable> slots_;
  std::optional<KeyIndex> index_;
  std::optional<SelectionBuffers> selection_;
  std::optional<Activations> activations_;
  std::optional<StepInputs> inputs_;
  std::optional<SamplingInputs> sampling_;
  std::optional<LaneTable> lanes_;
  std::unique_ptr<Communicator> group_;
  std::optional<SparseAttention<B>> attention_;
  std::optional<Transformer<B>> transformer_;
  StepClock clock_;
  View<const float, 2> logits_;
};

}  // namespace asynctls
