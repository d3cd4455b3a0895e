// SPDX-License-Identifier: Apache-2.0
// Where a rank's key code tables come from: the calibration file beside the checkpoint, or, where
// there is none, the model itself run over calibration text, densely, with the moments of its
// queries and keys added up.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/base/logging.h"
#include "engine/sparse/calibration.h"
#include "engine/worker/rank_model.h"

namespace asynctls {

// Called now and then with tokens done, of `total`.
using CalibrationProgress = std::function<void(int64_t done, int64_t total)>;

// Adds the queries and keys of one layer's prompt rows to `calibrator`.
template <Ops B>
void AddMoments(RankModel<B>& model,
                Calibrator& calibrator,
                int layer,
                const AttentionBatch& batch,
                View<const bf16, 3> q) {
  const int64_t heads = q.dim(1);
  const int64_t d = q.dim(2);
  const KvView kv = model.attention().Kv(layer);
  const int64_t groups = kv.rows.dim(1);
  for (int64_t h = 0; h < heads; ++h) {
    const int group = static_cast<int>(h / (heads / groups));
    model.ops().Moments(calibrator.Queries(layer, group, q.data + h * d, q.dim(0), heads * d));
  }
  const View<const int32_t, 2> slots = model.attention().HostSlots();
  for (const PrefillSegment& segment : batch.host_segments) {
    for (int32_t at = segment.start, end = segment.start + segment.count; at < end;) {
      const int32_t in_block = at % kBlockPositions;
      const int32_t count = std::min(kBlockPositions - in_block, end - at);
      const int32_t slot = slots(segment.lane, at / kBlockPositions);
      for (int group = 0; group < groups; ++group) {
        model.ops().Moments(calibrator.Keys(
            layer, group, &kv.rows(slot, group, in_block, 0), count, kv.rows.dim(3)));
      }
      at += count;
    }
  }
}

// Runs `tokens` through the model, as sequences as long as its context, and turns the moments into
// this rank's tables. Requires: no lane in use. Errors: INVALID_ARGUMENT for ids outside the
// vocabulary; as RankModel::Run, Calibrator::Create and Finish.
template <Ops B>
absl::StatusOr<KeyCodeTables> Calibrate(RankModel<B>& model,
                                        std::span<const uint32_t> tokens,
                                        const std::string& source,
                                        const CalibrationProgress& progress) {
  absl::StatusOr<Calibrator> made =
      Calibrator::Create(model.CodeShape(model.plan().kv.kv_heads), B::kMemory);
  if (!made.ok()) return made.status();
  Calibrator& calibrator = *made;
  model.transformer().Observe([&](int layer, const AttentionBatch& batch, View<const bf16, 3> q) {
    AddMoments(model, calibrator, layer, batch, q);
  });
  absl::Status status;
  const int64_t total = static_cast<int64_t>(tokens.size());
  const int64_t context = model.plan().lanes.max_context;
  for (int64_t done = 0; done < total && status.ok();) {
    const int64_t start = done % context;
    const int64_t count = std::min({total - done, context - start, model.plan().lanes.step_tokens});
    v1::StepPlan plan;
    if (start == 0) {
      if (done > 0) plan.add_released_lanes(0);
      plan.add_starts()->mutable_sparse()->set_mode(v1::ATTENTION_MODE_DENSE);
      plan.mutable_starts(0)->mutable_sampling()->set_top_p(1);
    }
    v1::LaneWork* work = plan.add_work();
    work->set_start(static_cast<uint32_t>(start));
    work->set_count(static_cast<uint32_t>(count));
    for (int64_t b = BlocksFor(start); b < BlocksFor(start + count); ++b) {
      work->add_new_blocks(static_cast<uint32_t>(b));
    }
    for (int64_t i = 0; i < count; ++i) work->add_tokens(tokens[done + i]);
    status = model.Run(plan).status();
    done += count;
    if (progress && status.ok()) progress(done, total);
  }
  model.transformer().Observe(nullptr);
  if (!status.ok()) return status;
  v1::StepPlan release;
  if (total > 0) release.add_released_lanes(0);
  status = model.Run(release).status();
  if (!status.ok()) return status;
  calibrator.Collect(model.ops());
  return calibrator.Finish(model.fingerprint(), source);
}

// Gives the rank its tables and says in `reply` where they came from. Errors: INVALID_ARGUMENT for
// a file of another model; FAILED_PRECONDITION where there is neither a file nor text; as
// Calibrate.
template <Ops B>
absl::Status InstallKeyCodes(const v1::InitRequest& request,
                             RankModel<B>& model,
                             v1::InitReply& reply) {
  const RankPlan& plan = model.plan();
  if (plan.index.SparseLayers() == 0) {
    reply.set_key_codes("none: every layer attends densely");
    return absl::OkStatus();
  }
  // Random weights do not get a file beside real ones.
  const bool synthetic = request.weights() == v1::WEIGHT_SOURCE_SYNTHETIC;
  std::string path = request.calibration_file();
  if (path.empty() && !synthetic) path = request.model_dir() + "/key_codes.safetensors";
  absl::StatusOr<KeyCodeTables> tables = absl::NotFoundError("key codes: no file");
  if (!path.empty()) {
    tables = KeyCodeTables::Read(
        path, model.CodeShape(plan.kv.kv_heads * plan.shard.size), model.fingerprint());
  }
  if (tables.ok()) {
    reply.set_key_codes(path);
    tables = tables->Slice(plan.kv.kv_heads * plan.shard.rank, plan.kv.kv_heads);
  } else if (!absl::IsNotFound(tables.status())) {
    return tables.status();
  } else if (request.calibration_tokens().empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        tables.status().message(),
        ", and no calibration text was given: run `asynctls calibrate`, or set dense_layers to ",
        plan.index.layers));
  } else {
    tables = Calibrate(model,
                       {request.calibration_tokens().data(),
                        static_cast<size_t>(request.calibration_tokens_size())},
                       "the bundled text, at load",
                       {});
    if (!tables.ok()) return tables.status();
    reply.set_key_codes("computed at load, kept in memory");
    if (plan.shard.size == 1 && !path.empty()) {
      const absl::Status written = tables->Write(path);
      if (written.ok()) reply.set_key_codes(absl::StrCat("computed at load, written to ", path));
      if (!written.ok()) spdlog::info("key codes: kept in memory: {}", written.ToString());
    }
  }
  for (int layer = plan.index.first_layer; layer < plan.index.layers; ++layer) {
    model.index().SetTable(model.ops(), layer, tables->table(layer));
    if (plan.index.bound) {
      model.index().SetChannels(model.ops(), layer, std::as_const(*tables).channels(layer));
    }
  }
  spdlog::info("key codes: {}", reply.key_codes());
  return absl::OkStatus();
}

}  // namespace asynctls
