// SPDX-License-Identifier: Apache-2.0
#include "engine/model/model_config.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

#include "absl/strings/str_cat.h"
#include "engine/base/logging.h"

namespace asynctls {
namespace {

// Typed reading of one JSON object. The first error sticks; readers after it return defaults, so
// that callers read as a list of fields.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object())
      Fail(absl::InvalidArgumentError(absl::StrCat(where_, ": not an object")));
  }

  // Present and not null.
  bool Has(const char* key) {
    seen_.insert(key);
    return object_.is_object() && object_.contains(key) && !object_[key].is_null();
  }
  const Json& Raw(const char* key) const { return object_[key]; }

  int Int(const char* key, int64_t low, int64_t high, std::optional<int> fallback = {}) {
    if (!Has(key)) return static_cast<int>(Missing(key, fallback));
    const Json& v = Raw(key);
    // Values above 2^63 parse as unsigned and are not in range either way.
    const bool fits = v.is_number_integer() && v >= low && v <= high;
    if (!fits) {
      Bad(key, v, absl::StrCat("an integer from ", low, " to ", high));
      return static_cast<int>(low);
    }
    return v.get<int>();
  }
  double Number(const char* key, double low, double high, std::optional<double> fallback = {}) {
    if (!Has(key)) return Missing(key, fallback);
    const Json& v = Raw(key);
    const double d = v.is_number() ? v.get<double>() : std::nan("");
    if (!(d >= low && d <= high)) {
      Bad(key, v, absl::StrCat("a number from ", low, " to ", high));
      return low;
    }
    return d;
  }
  bool Bool(const char* key, bool fallback) {
    if (!Has(key)) return fallback;
    if (!Raw(key).is_boolean()) Bad(key, Raw(key), "true or false");
    return Raw(key).is_boolean() && Raw(key).get<bool>();
  }
  std::string String(const char* key, const std::string& fallback) {
    if (!Has(key)) return fallback;
    if (!Raw(key).is_string()) Bad(key, Raw(key), "a string");
    return Raw(key).is_string() ? Raw(key).get<std::string>() : fallback;
  }

  // A value that is well formed but asks for something this version does not have.
  void Unsupported(const char* key, const std::string& value, const std::string& supported) {
    Fail(absl::UnimplementedError(absl::StrCat(where_,
                                               ": ",
                                               key,
                                               " is ",
                                               value,
                                               ", not supported by this version (only ",
                                               supported,
                                               ")")));
  }
  void Bad(const char* key, const Json& value, const std::string& wanted) {
    std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 80) + "...";
    Fail(absl::InvalidArgumentError(
        absl::StrCat(where_, ": ", key, " is ", text, ", must be ", wanted)));
  }
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  void LogUnknown() const {
    for (const auto& [key, value] : object_.items()) {
      if (!seen_.contains(key)) spdlog::debug("{}: unknown key '{}' ignored", where_, key);
    }
  }
  // Keys we know and that change nothing.
  void Known(std::initializer_list<const char*> keys) { seen_.insert(keys.begin(), keys.end()); }

  const absl::Status& status() const { return status_; }
  const std::string& where() const { return where_; }

 private:
  template <typename T>
  double Missing(const char* key, std::optional<T> fallback) {
    if (!fallback.has_value()) {
      Fail(absl::InvalidArgumentError(absl::StrCat(where_, ": ", key, " is missing")));
    }
    return static_cast<double>(fallback.value_or(T{}));
  }

  const Json& object_;
  std::string where_;
  std::set<std::string> seen_;
  absl::Status status_;
};

void CheckArchitecture(Fields& f, ModelConfig& c) {
  const Json* list = f.Has("architectures") ? &f.Raw("architectures") : nullptr;
  if (list == nullptr || !list->is_array() || list->size() != 1 || !(*list)[0].is_string()) {
    f.Bad("architectures", list == nullptr ? Json() : *list, "an array of one name");
    return;
  }
  c.architecture = (*list)[0].get<std::string>();
  if (c.architecture != "Qwen3ForCausalLM") {
    f.Unsupported("architectures", c.architecture, "Qwen3ForCausalLM");
  }
}

// Whatever would change the mathematics of the forward pass and is not built.
void CheckForwardPass(Fields& f, const ModelConfig& c) {
  const std::string act = f.String("hidden_act", "silu");
  if (act != "silu") f.Unsupported("hidden_act", act, "silu");
  if (f.Bool("attention_bias", false)) f.Unsupported("attention_bias", "true", "false");
  if (f.Bool("use_sliding_window", false)) f.Unsupported("use_sliding_window", "true", "false");
  if (f.Has("quantization_config")) {
    f.Unsupported("quantization_config", "present", "BF16 checkpoints");
  }
  f.Known({"sliding_window", "max_window_layers"});  // without use_sliding_window they do nothing
  if (!f.Has("layer_types")) return;
  const Json& types = f.Raw("layer_types");
  if (!types.is_array() || types.size() != static_cast<size_t>(c.layers)) {
    f.Bad("layer_types", types, "an array of num_hidden_layers names");
    return;
  }
  for (const Json& type : types) {
    if (type != "full_attention") f.Unsupported("layer_types", type.dump(), "full_attention");
  }
}

void CheckDtype(Fields& f) {
  for (const char* key : {"torch_dtype", "dtype"}) {
    const std::string dtype = f.String(key, "bfloat16");
    if (dtype != "bfloat16") f.Unsupported(key, dtype, "bfloat16");
  }
}

// inv_frequency as HuggingFace computes it: 1 / theta^(2i / D), each step rounded to float.
float InverseFrequency(double theta, int i, int head_dim) {
  return 1.0f / static_cast<float>(std::pow(theta, 2.0 * i / head_dim));
}

void SetYarn(Fields& rope, ModelConfig& c) {
  c.rope_factor = rope.Number("factor", 1, 1024);
  c.rope_original = rope.Int("original_max_position_embeddings", 1, 1 << 24, c.max_positions);
  const double beta_fast = rope.Number("beta_fast", 1e-3, 1e6, 32.0);
  const double beta_slow = rope.Number("beta_slow", 1e-3, 1e6, 1.0);
  const double factor =
      rope.Number("attention_factor", 1e-3, 1e3, 0.1 * std::log(c.rope_factor) + 1);
  for (const char* key : {"mscale", "mscale_all_dim", "truncate"}) {
    if (rope.Has(key)) rope.Unsupported(key, rope.Raw(key).dump(), "absent");
  }
  if (!rope.status().ok()) return;
  const YarnRange range =
      YarnCorrectionRange(c.head_dim, c.rope_theta, c.rope_original, beta_fast, beta_slow);
  for (int i = 0; i < c.head_dim / 2; ++i) {
    const double width = std::max(range.high - range.low, 0.001);
    const float ramp = static_cast<float>(std::clamp((i - range.low) / width, 0.0, 1.0));
    const float plain = InverseFrequency(c.rope_theta, i, c.head_dim);
    const float scaled = plain / static_cast<float>(c.rope_factor);
    c.inv_frequency[i] = scaled * ramp + plain * (1 - ramp);
  }
  c.rope_scale = static_cast<float>(factor);
  const double reach = std::min(c.rope_factor * c.rope_original, double{1 << 24});
  c.max_positions = std::max(c.max_positions, static_cast<int>(reach));
}

// Fills the rope fields from rope_parameters (v5), else rope_scaling and rope_theta (v4).
void ReadRope(Fields& f, ModelConfig& c) {
  static const Json kEmpty = Json::object();
  const bool v5 = f.Has("rope_parameters");
  const bool scaling = f.Has("rope_scaling");
  const double theta =
      f.Number("rope_theta", 1.0001, 1e12, v5 ? std::optional<double>(0) : std::nullopt);
  const char* key = v5 ? "rope_parameters" : "rope_scaling";
  Fields rope(v5 || scaling ? f.Raw(key) : kEmpty, absl::StrCat(f.where(), ": ", key));
  c.rope_theta = v5 ? rope.Number("rope_theta", 1.0001, 1e12) : theta;
  if (v5 && theta != 0 && theta != c.rope_theta) {
    f.Bad("rope_theta", f.Raw("rope_theta"), "rope_parameters.rope_theta where both are given");
  }
  const std::string type = rope.String("rope_type", rope.String("type", "default"));
  if (rope.Number("partial_rotary_factor", 0, 1, 1.0) != 1) {
    rope.Unsupported("partial_rotary_factor", rope.Raw("partial_rotary_factor").dump(), "1");
  }
  c.inv_frequency.resize(static_cast<size_t>(c.head_dim / 2));
  for (int i = 0; i < c.head_dim / 2; ++i) {
    c.inv_frequency[i] = InverseFrequency(c.rope_theta, i, c.head_dim);
  }
  if (type == "yarn") {
    SetYarn(rope, c);
  } else if (type != "default") {
    rope.Unsupported("rope_type", type, "default, yarn");
  }
  f.Fail(rope.status());
  if (rope.status().ok()) rope.LogUnknown();
}

// eos_token_id is an integer, an array of them, or absent.
void ReadEos(Fields& f, ModelConfig& c, std::set<uint32_t>& eos) {
  if (!f.Has("eos_token_id")) return;
  const Json& v = f.Raw("eos_token_id");
  for (const Json& id : v.is_array() ? v : Json::array({v})) {
    if (!id.is_number_integer() || id < 0 || id >= c.vocab) {
      f.Bad("eos_token_id", v, absl::StrCat("ids from 0 to ", c.vocab - 1));
      return;
    }
    eos.insert(id.get<uint32_t>());
  }
}

void ReadGeneration(Fields& f, ModelConfig& c, std::set<uint32_t>& eos) {
  ReadEos(f, c, eos);
  if (f.Has("temperature")) c.temperature = static_cast<float>(f.Number("temperature", 0, 100));
  if (f.Has("top_p")) c.top_p = static_cast<float>(f.Number("top_p", 0, 1));
  if (f.Has("top_k")) c.top_k = static_cast<uint32_t>(f.Int("top_k", 0, 1 << 30));
  if (f.Has("do_sample")) c.do_sample = f.Bool("do_sample", false);
  f.Known({"bos_token_id", "pad_token_id", "transformers_version", "_from_model_config"});
}

}  // namespace

YarnRange YarnCorrectionRange(
    int head_dim, double theta, int original, double beta_fast, double beta_slow) {
  const auto dimension = [&](double rotations) {
    return head_dim * std::log(original / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  };
  return {.low = std::max(std::floor(dimension(beta_fast)), 0.0),
          .high = std::min(std::ceil(dimension(beta_slow)), head_dim - 1.0)};
}

absl::StatusOr<ModelConfig> ParseModelConfig(const Json& config,
                                             const std::string& file,
                                             const Json& generation,
                                             const std::string& generation_file) {
  ModelConfig c;
  Fields f(config, file);
  CheckArchitecture(f, c);
  if (!f.status().ok()) return f.status();  // another family's fields would only confuse
  c.layers = f.Int("num_hidden_layers", 1, 1024);
  c.hidden = f.Int("hidden_size", 1, 65536);
  c.query_heads = f.Int("num_attention_heads", 1, 1024);
  c.kv_heads = f.Int("num_key_value_heads", 1, 1024);
  c.head_dim = f.Int("head_dim", 2, 1024);
  c.intermediate = f.Int("intermediate_size", 1, 1 << 20);
  c.vocab = f.Int("vocab_size", 1, 1 << 22);
  c.max_positions = f.Int("max_position_embeddings", 1, 1 << 24);
  c.rms_eps = static_cast<float>(f.Number("rms_norm_eps", 1e-12, 0.1));
  c.tied_embeddings = f.Bool("tie_word_embeddings", false);
  if (!f.status().ok()) return f.status();
  if (c.query_heads % c.kv_heads != 0) {
    f.Bad("num_attention_heads",
          f.Raw("num_attention_heads"),
          absl::StrCat("a multiple of num_key_value_heads, ", c.kv_heads));
  }
  if (c.head_dim % 2 != 0) f.Bad("head_dim", f.Raw("head_dim"), "even");
  CheckForwardPass(f, c);
  CheckDtype(f);
  if (!f.status().ok()) return f.status();
  ReadRope(f, c);
  std::set<uint32_t> eos;
  ReadEos(f, c, eos);
  f.Known({"model_type",
           "bos_token_id",
           "pad_token_id",
           "use_cache",
           "initializer_range",
           "attention_dropout",
           "transformers_version"});
  if (!f.status().ok()) return f.status();
  f.LogUnknown();

  if (!generation.is_null()) {
    Fields g(generation, generation_file);
    ReadGeneration(g, c, eos);
    if (!g.status().ok()) return g.status();
    g.LogUnknown();
  }
  c.eos.assign(eos.begin(), eos.end());
  return c;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir) {
  constexpr int64_t kMaxBytes = 16 << 20;
  const std::string file = dir + "/config.json";
  const std::string generation_file = dir + "/generation_config.json";
  absl::StatusOr<Json> config = ReadJsonFile(file, kMaxBytes);
  if (!config.ok()) return config.status();
  Json generation;
  if (access(generation_file.c_str(), F_OK) == 0) {
    absl::StatusOr<Json> read = ReadJsonFile(generation_file, kMaxBytes);
    if (!read.ok()) return read.status();
    generation = *std::move(read);
  }
  return ParseModelConfig(*config, file, generation, generation_file);
}

}  // namespace asynctls
