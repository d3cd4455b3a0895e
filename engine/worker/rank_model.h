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
#include "engine/worker/backend.h"
#include "engine/worker/rank_plan.h"
#include "engine/worker/step_memory.h"

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
  int depth() const { return static_cast<int>(under_way_.size()); }

  // Begins a step: all of it is put on the backend's stream. `done` is as Ops::WhenDone says, when
  // End would not wait. Requires: fewer than depth() steps are under way. Errors: INVALID_ARGUMENT
  // for a plan that breaks the contract, UNAVAILABLE for a broken group; the rank is then of no
  // more use, but for ending the steps under way.
  absl::Status Begin(const v1::StepPlan& plan, const std::function<void()>& done) {
    ASYNCTLS_CHECK(begun_ - ended_ < under_way_.size());
    StepMemory& memory = MemoryOf(begun_);
    memory.clock.Start(StepPhase::kInputs);
    absl::Status status = Pack(plan, memory);
    if (!status.ok()) return status;
    ops_->Mark(MarkOf(begun_, kFirstOp));
    bool heat = false;
    for (int pass = 0; pass < kPasses; ++pass) {
      if (memory.steps[pass].rows() == 0) continue;
      const AttentionBatch& batch = memory.steps[pass].attention;
      heat = heat || (batch.report_blocks && batch.decode_rows() > 0);
      memory.selected.Start(batch.decode_rows());
      status = RunPass(pass, memory);
      if (!status.ok()) return status;
    }
    ops_->Mark(MarkOf(begun_, kLastOp));
    memory.sampling.Download(*ops_);
    memory.selected.Download(*ops_, heat);
    ops_->Mark(MarkOf(begun_, kOnHost));
    ops_->WhenDone(MarkOf(begun_, kOnHost), done);
    memory.clock.Enter(StepPhase::kOther);
    ++begun_;
    return absl::OkStatus();
  }

  // Waits for the oldest step under way, and says what came of it.
  v1::StepResult End() {
    ASYNCTLS_CHECK(ended_ < begun_);
    StepMemory& memory = MemoryOf(ended_);
    ops_->WaitFor(MarkOf(ended_, kOnHost));
    memory.clock.Resume(StepPhase::kOther);
    v1::StepResult result;
    result.set_step(memory.step);
    memory.sampling.Report(result);
    for (const Step& step : memory.steps) Account(step.attention, memory, result);
    if (B::kMemory == MemoryKind::kDevice) {
      const int first = MarkOf(ended_, kFirstOp);
      memory.clock.Add(StepPhase::kDevice, ops_->Seconds(first, MarkOf(ended_, kLastOp)));
      if (ended_ > 0) {
        result.set_idle_seconds(ops_->Seconds(MarkOf(ended_ - 1, kLastOp), first));
      }
    }
    memory.clock.Enter(StepPhase::kOther);
    for (size_t i = 0; i < kStepPhaseNames.size(); ++i) {
      v1::StepResult::Phase* phase = result.add_phases();
      phase->set_name(kStepPhaseNames[i]);
      phase->set_seconds(memory.clock.seconds()[i]);
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
  // Marks of a step on the stream. The device is idle between the last op of a step and the first
  // of the next, so those of a step that has ended are kept for one more.
  enum Marked { kFirstOp, kLastOp, kOnHost };
  int MarkOf(uint64_t step, Marked what) const {
    return static_cast<int>(step % (under_way_.size() + 1)) * 3 + what;
  }
  StepMemory& MemoryOf(uint64_t step) { return under_way_[step % under_way_.size()]; }

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
    const bool two = B::kMemory == MemoryKind::kDevice && group_ == nullptr;
    absl::StatusOr<std::vector<StepMemory>> steps =
        StepMemory::Create(plan_, B::kMemory, two ? 2 : 1);
    if (!steps.ok()) return steps.status();
    under_way_ = *std::move(steps);
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
  absl::Status Pack(const v1::StepPlan& plan, StepMemory& memory) {
    const absl::Status status = lanes_->Apply(plan, *slots_);
    if (!status.ok()) return status;
    slots_->Upload(*ops_);
    for (const v1::LaneStart& start : plan.starts()) StartLane(start, memory.sampling);
    memory.step = plan.step();
    memory.steps = memory.inputs.Pack(plan, *lanes_);
    for (Step& step : memory.steps) step.attention.results = &memory.selected;
    memory.sampling.Pack(plan, *lanes_, memory.inputs);
    memory.inputs.Upload(*ops_);
    memory.sampling.Upload(*ops_);
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
  absl::Status RunPass(int pass, StepMemory& memory) {
    const Step& step = memory.steps[pass];
    const SamplingInputs& sampling = memory.sampling;
    const int64_t sampled = sampling.sampled_rows(pass).dim(0);
    if (pass != kDecodePass || group_ != nullptr || sampling.prompt_tiles(pass) > 0) {
      const absl::Status status = Compute(pass, memory);
      if (status.ok() && sampled > 0) logits_ = transformer_->LastLogits(sampled);
      return status;
    }
    const auto size = [](int64_t rows, int shift) { return static_cast<uint64_t>(rows) << shift; };
    const uint64_t key = size(step.rows(), 0) | size(step.attention.dense_rows, 16) |
                         size(sampled, 32) | size(sampling.TopIds({}, pass).rows.dim(0) > 0, 48) |
                         size(step.attention.report_blocks, 49);
    memory.clock.Enter(StepPhase::kOther);
    absl::Status status;
    ops_->Replay(key, [&] { status = Compute(pass, memory); });
    if (sampled > 0) logits_ = transformer_->LastLogits(sampled);
    return status;
  }

  absl::Status Compute(int pass, StepMemory& memory) {
    absl::Status status = transformer_->Forward(memory.steps[pass], memory.clock);
    if (status.ok()) status = ScorePrompts(pass, memory);
    if (status.ok()) status = Sample(pass, memory);
    return status;
  }

  // Log-probabilities of prompt tokens, by tiles of rows so that no long prompt needs all its
  // logits at once. Every rank computes its part of them, rank 0 reads them.
  absl::Status ScorePrompts(int pass, StepMemory& memory) {
    const SamplingInputs& sampling = memory.sampling;
    for (int64_t tile = 0; tile < sampling.prompt_tiles(pass); ++tile) {
      absl::StatusOr<View<const float, 2>> logits =
          transformer_->Logits(sampling.PromptRows(tile, pass), memory.clock);
      if (!logits.ok()) return logits.status();
      if (plan_.shard.rank != 0) continue;
      memory.clock.Enter(StepPhase::kSample);
      ops_->LogProbs(sampling.PromptLogProbs(tile, *logits, pass));
    }
    return absl::OkStatus();
  }

  // Rank 0 samples; the others learn the tokens.
  absl::Status Sample(int pass, StepMemory& memory) {
    const SamplingInputs& sampling = memory.sampling;
    const View<const int32_t, 1> rows = sampling.sampled_rows(pass);
    absl::StatusOr<View<const float, 2>> logits = transformer_->Logits(rows, memory.clock);
    if (!logits.ok()) return logits.status();
    if (rows.dim(0) == 0) return absl::OkStatus();
    memory.clock.Enter(StepPhase::kSample);
    if (plan_.shard.rank == 0) {
      ops_->Sample(sampling.Sampling(*logits, memory.inputs.last_token(), pass));
      ops_->LogProbs(sampling.TopIds(*logits, pass));
    }
    return group_ == nullptr ? absl::OkStatus() : ShareTokens(pass, memory);
  }

  absl::Status ShareTokens(int pass, StepMemory& memory) {
    const View<int32_t, 1> tokens = memory.sampling.host_tokens(pass);
    if (plan_.shard.rank == 0) memory.sampling.DownloadTokens(*ops_, pass);
    ops_->Wait();
    const absl::Status status = group_->Broadcast(tokens);
    if (!status.ok() || plan_.shard.rank == 0) return status;
    for (int64_t i = 0; i < tokens.dim(0); ++i) {
      const int32_t lane = memory.sampling.host_rows(pass)[i].lane;
      ops_->Upload(memory.inputs.last_token().data + lane, tokens.data + i, sizeof(int32_t));
    }
    return absl::OkStatus();
  }

  // Adds what the decode rows read.
  void Account(const AttentionBatch& batch,
               const StepMemory& memory,
               v1::StepResult& result) const {
    uint64_t nan_heads = result.nan_heads();
    for (int row = 0; row < batch.decode_rows(); ++row) {
      if (batch.host_rows[row].length == 0) continue;
      const RowRead read = attention_->Read(batch, row);
      v1::LaneRead* out = result.add_reads();
      out->set_lane(static_cast<uint32_t>(batch.host_rows[row].lane));
      out->set_mode(memory.inputs.mode(row));
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
  std::vector<StepMemory> under_way_;  // one for each step that may be
  std::optional<SparseAttention<B>> attention_;
  std::optional<Transformer<B>> transformer_;
  uint64_t begun_ = 0, ended_ = 0;  // steps
  View<const float, 2> logits_;
};

}  // namespace asynctls
