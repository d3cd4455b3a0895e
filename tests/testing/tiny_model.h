// SPDX-License-Identifier: Apache-2.0
// A tiny random Qwen3 checkpoint, written to a folder: its parts can be changed before writing, so
// that loader tests break one thing at a time.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/base/json.h"
#include "engine/base/safetensors.h"
#include "kernels/device/dtype.h"

namespace asynctls {

struct TinyTensor {
  std::string dtype = "BF16";
  std::vector<int64_t> shape;
  std::string bytes;
};

// 2 layers, hidden 32, 4 query heads, 2 KV heads of 32, intermediate 48, vocabulary of 67.
struct TinyModel {
  Json config = Json::parse(R"({
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 67,
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "intermediate_size": 48, "hidden_act": "silu", "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": null, "attention_bias": false,
    "tie_word_embeddings": false, "use_sliding_window": false, "sliding_window": null,
    "eos_token_id": 66, "torch_dtype": "bfloat16"})");
  Json generation;  // not written while null
  std::map<std::string, TinyTensor> tensors;

  TinyModel() {
    Add("model.embed_tokens.weight", {67, 32});
    Add("lm_head.weight", {67, 32});
    Add("model.norm.weight", {32});
    for (int i = 0; i < 2; ++i) {
      const std::string p = "model.layers." + std::to_string(i) + ".";
      Add(p + "input_layernorm.weight", {32});
      Add(p + "post_attention_layernorm.weight", {32});
      Add(p + "self_attn.q_proj.weight", {128, 32});
      Add(p + "self_attn.k_proj.weight", {64, 32});
      Add(p + "self_attn.v_proj.weight", {64, 32});
      Add(p + "self_attn.o_proj.weight", {32, 128});
      Add(p + "self_attn.q_norm.weight", {32});
      Add(p + "self_attn.k_norm.weight", {32});
      Add(p + "mlp.gate_proj.weight", {48, 32});
      Add(p + "mlp.up_proj.weight", {48, 32});
      Add(p + "mlp.down_proj.weight", {32, 48});
    }
  }

  // Random values: norms near 1, matrices near 0.
  void Add(const std::string& name, const std::vector<int64_t>& shape) {
    std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>{}(name)));
    std::normal_distribution<float> normal(shape.size() == 1 ? 1.0f : 0.0f, 0.2f);
    int64_t count = 1;
    for (const int64_t d : shape) count *= d;
    TinyTensor t{.shape = shape, .bytes = {}};
    for (int64_t i = 0; i < count; ++i) {
      const bf16 value = ToBf16(normal(random));
      t.bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    tensors[name] = std::move(t);
  }

  void WriteConfig(const std::string& dir) const {
    std::ofstream(dir + "/config.json") << config.dump();
    if (!generation.is_null()) std::ofstream(dir + "/generation_config.json") << generation.dump();
  }

  void WriteTensorFile(const std::string& path,
                       const std::map<std::string, TinyTensor>& some) const {
    std::vector<TensorToWrite> list;
    for (const auto& [name, t] : some) {
      list.push_back({.name = name,
                      .dtype = t.dtype,
                      .shape = t.shape,
                      .bytes = std::as_bytes(std::span(t.bytes))});
    }
    const absl::Status status = WriteTensors(path, list, {{"format", "pt"}});
    EXPECT_TRUE(status.ok()) << status;
  }

  void Write(const std::string& dir) const {
    WriteConfig(dir);
    WriteTensorFile(dir + "/model.safetensors", tensors);
  }
};

}  // namespace asynctls
