// SPDX-License-Identifier: Apache-2.0
// RankShape: the sizes of one rank's share of a model, in the shape alphabet of kernels/README.md.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/model_config.h"
#include "engine/parallel/shard.h"

namespace asynctls {

struct RankShape {
  int layers = 0;
  int hidden = 0;        // H, not split
  int query_heads = 0;   // Q
  int kv_heads = 0;      // G
  int head_dim = 0;      // D
  int intermediate = 0;  // I
  int vocab = 0;         // V of the whole model
  int vocab_rows = 0;    // of this rank, padded: the same on every rank
  int32_t first_id = 0;  // id of this rank's first vocabulary row

  int64_t QkvWidth() const { return int64_t{query_heads + 2 * kv_heads} * head_dim; }
  int64_t AttentionWidth() const { return int64_t{query_heads} * head_dim; }

  // Errors: INVALID_ARGUMENT naming the size that the ranks do not divide.
  static absl::StatusOr<RankShape> Of(const ModelConfig& config, const Shard& shard) {
    const std::pair<const char*, int> split[] = {{"num_attention_heads", config.query_heads},
                                                 {"num_key_value_heads", config.kv_heads},
                                                 {"intermediate_size", config.intermediate}};
    for (const auto& [name, n] : split) {
      const absl::Status status = shard.Check(name, n);
      if (!status.ok()) return status;
    }
    const int rows = static_cast<int>(shard.PaddedRows(config.vocab));
    return RankShape{.layers = config.layers,
                     .hidden = config.hidden,
                     .query_heads = config.query_heads / shard.size,
                     .kv_heads = config.kv_heads / shard.size,
                     .head_dim = config.head_dim,
                     .intermediate = config.intermediate / shard.size,
                     .vocab = config.vocab,
                     .vocab_rows = rows,
                     .first_id = static_cast<int32_t>(rows * shard.rank)};
  }
};

}  // namespace asynctls
