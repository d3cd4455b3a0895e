// SPDX-License-Identifier: Apache-2.0
// RankPlan: every size of one rank, resolved and checked from InitRequest and model before anything
// is allocated, and what it will all weigh. Pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/kv/kv_layout.h"
#include "engine/model/activations.h"
#include "engine/model/model_config.h"
#include "engine/model/rank_shape.h"
#include "engine/model/weights.h"
#include "engine/parallel/shard.h"
#include "engine/sparse/key_index.h"
#include "engine/sparse/selection_buffers.h"
#include "engine/worker/lane_table.h"
#include "engine/worker/sampling_inputs.h"
#include "engine/worker/step_inputs.h"

namespace asynctls {

struct RankPlan {
  Shard shard;
  RankShape shape;
  KvLayout kv;
  KeyIndexShape index;
  Activations::Size activations;
  SelectionShape selection;
  StepInputsShape inputs;
  SamplingShape sampling;
  LaneLimits lanes;
  int64_t blocks = 0;       // logical blocks, and slots
  int64_t max_blocks = 0;   // of one lane (M)
  int64_t decode_rows = 0;  // most of a step, padding included (S)

  struct Memory {
    std::string what;
    int64_t bytes;
  };
  std::vector<Memory> memory;

  int64_t TotalBytes() const;
  // "weights 15 MiB, KV 400 MiB, ...".
  std::string MemoryTable() const;
};

// What planning needs to know of a backend.
struct BackendTraits {
  int64_t available = 0;  // bytes, as CheckFits
  std::function<int64_t(const RankPlan&)> workspace;
  bool split_passes = false;
  bool bound_selector = true;
};

// Resolves all sizes. kv_bytes of 0 is what `available` leaves beside everything else and a reserve
// of 1 GiB. A context that kv_bytes cannot hold is cut to what it can. Errors: INVALID_ARGUMENT
// naming field, value and limit; RESOURCE_EXHAUSTED with the numbers when kv_bytes holds no block.
absl::StatusOr<RankPlan> PlanRank(const v1::InitRequest& request,
                                  const ModelConfig& config,
                                  const BackendTraits& backend);

// RESOURCE_EXHAUSTED with the table when the plan needs more than `available` bytes.
absl::Status CheckFits(const RankPlan& plan, int64_t available);

// What this process may still allocate: /proc/meminfo's MemAvailable, or what is left under the
// control group's limit if that is less. The largest int64 where neither can be read.
int64_t AvailableMemory();

// Of the model's sizes, rotation and norms (which every rank holds whole), in hexadecimal. `norms`
// are final_norm, then each layer's input_norm and k_norm.
std::string CheckpointFingerprint(const ModelConfig& config,
                                  const std::vector<std::vector<bf16>>& norms);

// What GetModelInfo tells of the model.
v1::ModelInfo DescribeModel(const v1::InitRequest& request,
                            const ModelConfig& config,
                            const RankPlan& plan);

}  // namespace asynctls
