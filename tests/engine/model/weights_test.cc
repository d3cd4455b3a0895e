// SPDX-License-Identifier: Apache-2.0
#include "engine/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "kernels/ref/ref_ops.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

using ::testing::HasSubstr;

ModelConfig ConfigOf(const TinyModel& model) {
  return *ParseModelConfig(model.config, "config.json", model.generation, "");
}

absl::StatusOr<Weights> LoadTiny(const TinyModel& model, const Shard& shard = {}) {
  const TempDir dir;
  model.Write(dir.path());
  absl::StatusOr<TensorSource> source = TensorSource::OpenCheckpoint(dir.path());
  if (!source.ok()) return source.status();
  return Weights::Load(ConfigOf(model), shard, *source);
}

// Loading a tiny model that `change` has broken fails and says `part`.
void ExpectRefused(const std::function<void(TinyModel&)>& change, const std::string& part) {
  TinyModel model;
  change(model);
  const absl::Status status = LoadTiny(model).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors: "));
}

bf16 Value(const TinyModel& model, const std::string& name, int64_t index) {
  bf16 v;
  std::memcpy(&v, model.tensors.at(name).bytes.data() + index * 2, 2);
  return v;
}

absl::StatusOr<Weights> Synthetic(const ModelConfig& config, const Shard& shard, uint64_t seed) {
  return Weights::Synthetic(config, shard, seed, MemoryKind::kHost, [](const FillRandomArgs& a) {
    RefOps().FillRandom(a);
  });
}

TEST(WeightsTest, FusesProjections) {
  const TinyModel model;
  absl::StatusOr<Weights> w = LoadTiny(model);
  ASSERT_TRUE(w.ok()) << w.status();
  const LayerWeights& layer = w->layers()[1];
  EXPECT_EQ(layer.qkv.data.shape, (std::array<int64_t, 2>{256, 32}));
  EXPECT_EQ(layer.gate_up.data.shape, (std::array<int64_t, 2>{96, 32}));
  const std::string p = "model.layers.1.";
  EXPECT_EQ(layer.qkv.data(127, 5).bits,
            Value(model, p + "self_attn.q_proj.weight", 127 * 32 + 5).bits);
  EXPECT_EQ(layer.qkv.data(128, 0).bits, Value(model, p + "self_attn.k_proj.weight", 0).bits);
  EXPECT_EQ(layer.qkv.data(255, 31).bits, Value(model, p + "self_attn.v_proj.weight", 2047).bits);
  EXPECT_EQ(layer.gate_up.data(48, 1).bits, Value(model, p + "mlp.up_proj.weight", 1).bits);
  EXPECT_EQ(layer.k_norm(0, 31).bits, Value(model, p + "self_attn.k_norm.weight", 31).bits);
  EXPECT_EQ(w->head().data(66, 31).bits, Value(model, "lm_head.weight", 67 * 32 - 1).bits);
}

TEST(WeightsTest, SplitsByTheTable) {
  const TinyModel model;
  const Shard second{1, 2};
  absl::StatusOr<Weights> w = LoadTiny(model, second);
  ASSERT_TRUE(w.ok()) << w.status();
  const LayerWeights& layer = w->layers()[0];
  const std::string p = "model.layers.0.";
  // Rows: heads 2 and 3 of q, 1 of k. Columns: the second half of o's and down's inputs.
  EXPECT_EQ(layer.qkv.data(0, 0).bits, Value(model, p + "self_attn.q_proj.weight", 64 * 32).bits);
  EXPECT_EQ(layer.qkv.data(64, 0).bits, Value(model, p + "self_attn.k_proj.weight", 32 * 32).bits);
  EXPECT_EQ(layer.out.data(3, 0).bits,
            Value(model, p + "self_attn.o_proj.weight", 3 * 128 + 64).bits);
  EXPECT_EQ(layer.down.data(3, 1).bits, Value(model, p + "mlp.down_proj.weight", 3 * 48 + 25).bits);
  EXPECT_EQ(layer.gate_up.data(24, 0).bits, Value(model, p + "mlp.up_proj.weight", 24 * 32).bits);
  // Vocabulary: 34 rows on each rank, the last of the second one padding.
  EXPECT_EQ(w->embedding().dim(0), 34);
  EXPECT_EQ(w->embedding()(32, 0).bits, Value(model, "model.embed_tokens.weight", 66 * 32).bits);
  EXPECT_EQ(w->embedding()(33, 0).bits, 0);
}

TEST(WeightsTest, TiedEmbeddingsHaveACopyForTheHead) {
  TinyModel model;
  model.config["tie_word_embeddings"] = true;
  absl::StatusOr<Weights> w = LoadTiny(model);  // lm_head.weight is there and ignored
  ASSERT_TRUE(w.ok()) << w.status();
  EXPECT_NE(w->head().data.data, w->embedding().data);
  EXPECT_EQ(w->head().data(5, 5).bits, w->embedding()(5, 5).bits);
  model.tensors.erase("lm_head.weight");
  EXPECT_TRUE(LoadTiny(model).ok());
  EXPECT_EQ(ParameterCount(ConfigOf(model)),
            67 * 32 + 32 + 2 * (2 * 32 + 2 * 32 + 256 * 32 + 32 * 128 + 3 * 48 * 32));
}

TEST(WeightsTest, NamesTheTensorThatIsWrong) {
  const std::string k = "model.layers.1.self_attn.k_proj.weight";
  ExpectRefused([&](TinyModel& m) { m.tensors.erase(k); }, "tensor '" + k + "' is missing");
  ExpectRefused(
      [&](TinyModel& m) {
        m.Add(k, {32, 16});
      },
      "tensor '" + k + "' has shape [32, 16], config.json asks for [64, 32]");
  ExpectRefused([&](TinyModel& m) { m.tensors[k].dtype = "F16"; },
                "tensor '" + k + "' is F16, this version reads BF16 only");
  ExpectRefused(
      [](TinyModel& m) {
        m.Add("model.norm.weight", {1, 32});
      },
      "tensor 'model.norm.weight' has shape [1, 32], config.json asks for [32]");
  ExpectRefused(
      [](TinyModel& m) {
        m.Add("model.layers.2.mlp.up_proj.weight", {48, 32});
      },
      "1 tensors are not a part of Qwen3ForCausalLM with 2 layers: "
      "model.layers.2.mlp.up_proj.weight");
  ExpectRefused([](TinyModel& m) { m.Add("model.layers.0.self_attn.q_proj.bias", {128}); },
                "model.layers.0.self_attn.q_proj.bias");
}

TEST(WeightsTest, IgnoresRotaryBuffers) {
  TinyModel model;
  model.Add("model.layers.0.self_attn.rotary_emb.inv_freq", {16});
  EXPECT_TRUE(LoadTiny(model).ok());
}

TEST(WeightsTest, SyntheticWeightsDependOnSeedAndPlaceOnly) {
  const ModelConfig config = ConfigOf(TinyModel());
  absl::StatusOr<Weights> whole = Synthetic(config, {}, 1);
  absl::StatusOr<Weights> part = Synthetic(config, {1, 2}, 1);
  absl::StatusOr<Weights> other = Synthetic(config, {}, 2);
  ASSERT_TRUE(whole.ok() && part.ok() && other.ok());
  const View<bf16, 2>& out = whole->layers()[1].out.data;
  int different = 0;
  double sum = 0, squares = 0;
  for (int r = 0; r < 32; ++r) {
    for (int c = 0; c < 128; ++c) {
      sum += ToFloat(out(r, c));
      squares += ToFloat(out(r, c)) * ToFloat(out(r, c));
      different += out(r, c).bits != other->layers()[1].out.data(r, c).bits;
      if (c >= 64) {
        EXPECT_EQ(part->layers()[1].out.data(r, c - 64).bits, out(r, c).bits);
      }
    }
  }
  EXPECT_GT(different, 4000);
  EXPECT_NEAR(sum / 4096, 0, 0.002);
  EXPECT_NEAR(std::sqrt(squares / 4096), 0.02, 0.001);
  EXPECT_NEAR(ToFloat(whole->final_norm()(0, 7)), 1, 0.05);
  EXPECT_EQ(whole->matrices().size(), 9u);
}

}  // namespace
}  // namespace asynctls
