// SPDX-License-Identifier: Apache-2.0
// RankModel: everything one rank owns - ops, weights, KV, index, buffers - built in order, and run
// plan after plan. On a device one step can be prepared while another runs. No threads of its own:
// LocalWorker gives it one.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/base/check.h"
#include "engine/base/logging.h"
#include "engine/base/safetensors.h"
#include "engine/model/transformer.h"
#include "engine/parallel/gloo_communicator.h"
#include "engine/parallel/staged_communicator.h"
#include "engine/sparse/calibration.h"
#include "engine/sparse/selection_results.h"
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

  // How many steps may be under way at once: two on a device, unless ranks meet in every layer,
  // which takes the host.
  int depth() const { return static_cast<int>(sides_.size()); }

  // Begins a step: all of it is put on the backend's stream. `done` is as Ops::WhenDone says, when
  // End would not wait. Requires: fewer than depth() steps are under way. Errors: INVALID_ARGUMENT
  // for a plan that breaks the contract, UNAVAILABLE for a broken group; the rank is then of no
  // more use, but for ending the steps under way.
  absl::Status Begin(const v1::StepPlan& plan, const std::function<void()>& done) {
    ASYNCTLS_CHECK(begun_ - ended_ < sides_.size());
    Side& side = SideOf(begun_);
    side.clock.Start(StepPhase::kInputs);
    absl::Status status = Pack(plan, side);
    if (!status.ok()) return status;
    ops_->Mark(MarkOf(begun_, kFirstOp));
    bool heat = false;
    for (int pass = 0; pass < kPasses; ++pass) {
      if (side.steps[pass].rows() == 0) continue;
      const AttentionBatch& batch = side.steps[pass].attention;
      heat = heat || (batch.report_blocks && batch.decode_rows() > 0);
      side.selected.Start(batch.decode_rows());
      status = RunPass(pass, side);
      if (!status.ok()) return status;
    }
    ops_->Mark(MarkOf(begun_, kLastOp));
    side.sampling.Download(*ops_);
    side.selected.Download(*ops_, heat);
    ops_->Mark(MarkOf(begun_, kOnHost));
    ops_->WhenDone(MarkOf(begun_, kOnHost), done);
    side.clock.Enter(StepPhase::kOther);
    ++begun_;
    return absl::OkStatus();
  }

  // Waits for the oldest step under way, and says what came of it.
  v1::StepResult End() {
    ASYNCTLS_CHECK(ended_ < begun_);
    Side& side = SideOf(ended_);
    ops_->WaitFor(MarkOf(ended_, kOnHost));
    side.clock.Resume(StepPhase::kOther);
    v1::StepResult result;
    result.set_step(side.step);
    side.sampling.Report(result);
    for (const Step& step : side.steps) Account(step.attention, side, result);
    if (B::kMemory == MemoryKind::kDevice) {
      const int first = MarkOf(ended_, kFirstOp);
      side.clock.Add(StepPhase::kDevice, ops_->Seconds(first, MarkOf(ended_, kLastOp)));
      if (ended_ > 0) {
        result.set_idle_seconds(ops_->Seconds(MarkOf(ended_ - 1, kLastOp), first));
      }
    }
    side.clock.Enter(StepPhase::kOther);
    for (size_t i = 0; i < kStepPhaseNames.size(); ++i) {
      v1::StepResult::Phase* phase = result.add_phases();
      phase->set_name(kStepPhaseNames[i]);
      phase->set_seconds(side.clock.seconds()[i]);
    }
    ++ended_;
    return result;
  }

  // Runs one step. Requires: none is under way. Errors: as Begin.
  absl::StatusOr<v1::StepResult> Run(const v1::StepPlan& plan) {
    static const std::function<void()> nobody = [] {};
    const absl::Status status = Begin(plan, nobody);
    if (!status.ok()) return status;
    return End();
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
  // What a step under way has for itself.
  struct Side {
    StepInputs inputs;
    SamplingInputs sampling;
    SelectionResults selected;
    StepClock clock;
    uint64_t step = 0;
    Steps steps;
  };
  // Marks of a step on the stream. The device is idle between the last op of a step and the first
  // of the next, so those of a step that has ended are kept for one more.
  enum Marked { kFirstOp, kLastOp, kOnHost };
  int MarkOf(uint64_t step, Marked what) const {
    return static_cast<int>(step % (sides_.size() + 1)) * 3 + what;
  }
  Side& SideOf(uint64_t step) { return sides_[step % sides_.size()]; }

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
    status = AllocateSides();
    if (!status.ok()) return status;
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
    lanes_.emplace(plan_.lanes);
    return status;
  }

  absl::Status AllocateSides() {
    constexpr MemoryKind kKind = B::kMemory;
    absl::Status status = AddSide(StepInputs::Create(plan_.inputs, kKind),
                                  SamplingInputs::Create(plan_.sampling, kKind),
                                  SelectionResults::Create(plan_.selection, plan_.index, kKind));
    if (!status.ok() || kKind != MemoryKind::kDevice || group_ != nullptr) return status;
    const Side& first = sides_[0];
    return AddSide(first.inputs.Twin(), first.sampling.Twin(), first.selected.Twin());
  }

  absl::Status AddSide(absl::StatusOr<StepInputs> inputs,
                       absl::StatusOr<SamplingInputs> sampling,
                       absl::StatusOr<SelectionResults> selected) {
    absl::Status status = inputs.status();
    status.Update(sampling.status());
    status.Update(selected.status());
    if (!status.ok()) return status;
    sides_.push_back({.inputs = *std::move(inputs),
                      .sampling = *std::move(sampling),
                      .selected = *std::move(selected),
                      .clock = {},
                      .step = 0,
                      .steps = {}});
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
    reply.set_plans_in_flight(static_cast<uint32_t>(depth()));
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

  // Takes the plan over and puts what the passes read on its way to the backend.
  absl::Status Pack(const v1::StepPlan& plan, Side& side) {
    const absl::Status status = lanes_->Apply(plan, *slots_);
    if (!status.ok()) return status;
    slots_->Upload(*ops_);
    for (const v1::LaneStart& start : plan.starts()) StartLane(start, side.sampling);
    side.step = plan.step();
    side.steps = side.inputs.Pack(plan, *lanes_);
    for (Step& step : side.steps) step.attention.results = &side.selected;
    side.sampling.Pack(plan, *lanes_, side.inputs);
    side.inputs.Upload(*ops_);
    side.sampling.Upload(*ops_);
    return status;
  }

  void StartLane(const v1::LaneStart& start, SamplingInputs& sampling) {
    std::optional<StartHistoryArgs> history = sampling.Start(start);
    if (!history.has_value()) return;
    history->prompt_ids = Lend(*ops_, sampling.ids(), history->prompt_ids);
    ops_->StartHistory(*history);
  }

  // The rows of one pass, from tokens to tokens. Decode rows on their own are replayed, where
  // nothing in between needs the host: passes of the same sizes differ in what memory holds only.
  absl::Status RunPass(int pass, Side& side) {
    const Step& step = side.steps[pass];
    const SamplingInputs& sampling = side.sampling;
    const int64_t sampled = sampling.sampled_rows(pass).dim(0);
    if (pass != kDecodePass || group_ != nullptr || sampling.prompt_tiles(pass) > 0) {
      const absl::Status status = Compute(pass, side);
      if (status.ok() && sampled > 0) logits_ = transformer_->LastLogits(sampled);
      return status;
    }
    const auto size = [](int64_t rows, int shift) { return static_cast<uint64_t>(rows) << shift; };
    const uint64_t key = size(step.rows(), 0) | size(step.attention.dense_rows, 16) |
                         size(sampled, 32) | size(sampling.TopIds({}, pass).rows.dim(0) > 0, 48) |
                         size(step.attention.report_blocks, 49);
    side.clock.Enter(StepPhase::kOther);
    absl::Status status;
    ops_->Replay(key, [&] { status = Compute(pass, side); });
    if (sampled > 0) logits_ = transformer_->LastLogits(sampled);
    return status;
  }

  absl::Status Compute(int pass, Side& side) {
    absl::Status status = transformer_->Forward(side.steps[pass], side.clock);
    if (status.ok()) status = ScorePrompts(pass, side);
    if (status.ok()) status = Sample(pass, side);
    return status;
  }

  // Log-probabilities of prompt tokens, by tiles of rows so that no long prompt needs all its
  // logits at once. Every rank computes its part of them, rank 0 reads them.
  absl::Status ScorePrompts(int pass, Side& side) {
    const SamplingInputs& sampling = side.sampling;
    for (int64_t tile = 0; tile < sampling.prompt_tiles(pass); ++tile) {
      absl::StatusOr<View<const float, 2>> logits =
          transformer_->Logits(sampling.PromptRows(tile, pass), side.clock);
      if (!logits.ok()) return logits.status();
      if (plan_.shard.rank != 0) continue;
      side.clock.Enter(StepPhase::kSample);
      ops_->LogProbs(sampling.PromptLogProbs(tile, *logits, pass));
    }
    return absl::OkStatus();
  }

  // Rank 0 samples; the others learn the tokens.
  absl::Status Sample(int pass, Side& side) {
    const SamplingInputs& sampling = side.sampling;
    const View<const int32_t, 1> rows = sampling.sampled_rows(pass);
    absl::StatusOr<View<const float, 2>> logits = transformer_->Logits(rows, side.clock);
    if (!logits.ok()) return logits.status();
    if (rows.dim(0) == 0) return absl::OkStatus();
    side.clock.Enter(StepPhase::kSample);
    if (plan_.shard.rank == 0) {
      ops_->Sample(sampling.Sampling(*logits, side.inputs.last_token(), pass));
      ops_->LogProbs(sampling.TopIds(*logits, pass));
    }
    return group_ == nullptr ? absl::OkStatus() : ShareTokens(pass, side);
  }

  absl::Status ShareTokens(int pass, Side& side) {
    const View<int32_t, 1> tokens = side.sampling.host_tokens(pass);
    if (plan_.shard.rank == 0) side.sampling.DownloadTokens(*ops_, pass);
    ops_->Wait();
    const absl::Status status = group_->Broadcast(tokens);
    if (!status.ok() || plan_.shard.rank == 0) return status;
    for (int64_t i = 0; i < tokens.dim(0); ++i) {
      const int32_t lane = side.sampling.host_rows(pass)[i].lane;
      ops_->Upload(side.inputs.last_token().data + lane, tokens.data + i, sizeof(int32_t));
    }
    return absl::OkStatus();
  }

  // Adds what the decode rows read.
  void Account(const AttentionBatch& batch, const Side& side, v1::StepResult& result) const {
    uint64_t nan_heads = result.nan_heads();
    for (int row = 0; row < batch.decode_rows(); ++row) {
      if (batch.host_rows[row].length == 0) continue;
      const RowRead read = attention_->Read(batch, row);
      v1::LaneRead* out = result.add_reads();
      out->set_lane(static_cast<uint32_t>(batch.host_rows[row].lane));
      out->set_mode(side.inputs.mode(row));
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
  std::optional<LaneTable> lanes_;
  std::unique_ptr<Communicator> group_;
  std::vector<Side> sides_;  // one for each step that may be under way
  std::optional<SparseAttention<B>> attention_;
  std::optional<Transformer<B>> transformer_;
  uint64_t begun_ = 0, ended_ = 0;  // steps
  View<const float, 2> logits_;
};

}  // namespace asynctls
