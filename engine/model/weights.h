// SPDX-License-Identifier: Apache-2.0
// Weights: one rank's parameters in one arena, q, k, v and gate, up fused. The checkpoint's names,
// shapes and splits are the table in weights.cc; loading is a loop over it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/safetensors.h"
#include "engine/model/model_config.h"
#include "engine/model/rank_shape.h"
#include "engine/model/read_pieces.h"
#include "engine/parallel/shard.h"
#include "kernels/device/buffer.h"
#include "kernels/ops.h"

namespace asynctls {

struct LayerWeights {
  View<bf16, 2> input_norm;  // [1, H]
  Matrix qkv;                // [(Q + 2G) D, H]
  View<bf16, 2> q_norm;      // [1, D]
  View<bf16, 2> k_norm;      // [1, D]
  Matrix out;                // [H, Q D]
  View<bf16, 2> post_norm;   // [1, H]
  Matrix gate_up;            // [2I, H]
  Matrix down;               // [H, I]
};

class Weights {
 public:
  // Bytes of the arena, before anything is allocated.
  static int64_t Bytes(const ModelConfig& config, const Shard& shard);

  // Reads this rank's part of every tensor into memory of `kind`, by several threads; device memory
  // is filled by `send`, which is called on this thread. Errors: INVALID_ARGUMENT naming file and
  // tensor: one that is missing, has another shape, is not BF16, or is not a part of the model
  // (rotary inv_freq buffers, and lm_head beside tied embeddings, are ignored); RESOURCE_EXHAUSTED;
  // DATA_LOSS for a file that cannot be read. Requires: RankShape::Of(config, shard) is OK.
  static absl::StatusOr<Weights> Load(const ModelConfig& config,
                                      const Shard& shard,
                                      const TensorSource& source,
                                      MemoryKind kind = MemoryKind::kHost,
                                      const SendBytes& send = {});

  // Random weights of the true shapes, in memory of `kind` where `fill` runs: matrices uniform with
  // deviation 0.02, norms near 1. A value depends on seed, tensor name and index only, not on the
  // split. Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<Weights> Synthetic(const ModelConfig& config,
                                           const Shard& shard,
                                           uint64_t seed,
                                           MemoryKind kind,
                                           const std::function<void(const FillRandomArgs&)>& fill);

  // Everything Ops::Prepare wants to see.
  std::vector<Matrix*> matrices();

  const View<bf16, 2>& embedding() const { return embedding_; }  // [rows, H], always row-major
  const std::vector<LayerWeights>& layers() const { return layers_; }
  const View<bf16, 2>& final_norm() const { return final_norm_; }  // [1, H]
  const Matrix& head() const { return head_; }  // [rows, H], a copy where tied: Prepare repacks it

 private:
  friend struct WeightTable;

  Buffer arena_;
  View<bf16, 2> embedding_;
  std::vector<LayerWeights> layers_;
  View<bf16, 2> final_norm_;
  Matrix head_;
};

// Parameters of the whole model, tied embeddings counted once.
int64_t ParameterCount(const ModelConfig& config);

}  // namespace asynctls
