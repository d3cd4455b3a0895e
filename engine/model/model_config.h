// SPDX-License-Identifier: Apache-2.0
// What config.json and generation_config.json say of a model, checked: everything behind this file
// may rely on the bounds below. Reads the transformers v4 style (rope_theta, rope_scaling) and the
// v5 style (rope_parameters, layer_types). Formulas: HuggingFace modeling_qwen3,
// modeling_rope_utils.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"

namespace asynctls {

struct ModelConfig {
  std::string architecture;  // Qwen3ForCausalLM
  int layers = 0;            // 1 .. 1024
  int hidden = 0;            // H, 1 .. 65536
  int query_heads = 0;       // Q, 1 .. 1024
  int kv_heads = 0;          // G, divides Q
  int head_dim = 0;          // D, even, 2 .. 1024; said by the file, never H / Q
  int intermediate = 0;      // I, 1 .. 2^20
  int vocab = 0;             // V, rows of the embedding, 1 .. 2^22
  int max_positions = 0;     // 1 .. 2^24; with YaRN at least factor x original positions
  float rms_eps = 0;         // of every norm, in (0, 1)
  bool tied_embeddings = false;

  // Rotary embedding: angle = position x inv_frequency[i], i < D / 2, for the pair (i, i + D / 2);
  // cos and sin are multiplied by rope_scale (YaRN's attention factor, so logits scale by its
  // square).
  double rope_theta = 0;
  double rope_factor = 1;  // YaRN's s; 1 without
  int rope_original = 0;   // YaRN's original_max_position_embeddings; 0 without
  std::vector<float> inv_frequency;
  float rope_scale = 1;

  std::vector<uint32_t> eos;  // union of both files, sorted

  // generation_config.json; absent where it says nothing.
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<uint32_t> top_k;
  std::optional<bool> do_sample;
};

// `dir`/config.json, and `dir`/generation_config.json where there is one. Errors: NOT_FOUND without
// config.json; INVALID_ARGUMENT naming file, field, value and limit; UNIMPLEMENTED for an
// architecture, rope type, activation or attention this version does not have. Unknown keys are
// logged at debug level.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir);

// The same from parsed text; `file` starts the error messages. `generation` may be null.
absl::StatusOr<ModelConfig> ParseModelConfig(const Json& config,
                                             const std::string& file,
                                             const Json& generation,
                                             const std::string& generation_file);

// YaRN (Peng et al. 2023, as modeling_rope_utils writes it): frequencies below dimension `low` keep
// their value, above `high` they are divided by the factor, between they are mixed.
struct YarnRange {
  double low;
  double high;
};
YarnRange YarnCorrectionRange(
    int head_dim, double theta, int original, double beta_fast, double beta_slow);

}  // namespace asynctls
