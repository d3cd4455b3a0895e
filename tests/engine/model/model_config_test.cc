// SPDX-License-Identifier: Apache-2.0
#include "engine/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<ModelConfig> Parse(const Json& config, const Json& generation = Json()) {
  return ParseModelConfig(config, "config.json", generation, "generation_config.json");
}

// The tiny model with one key changed.
absl::Status StatusWith(const std::string& key, const Json& value) {
  Json config = TinyModel().config;
  config[key] = value;
  return Parse(config).status();
}
std::string MessageWith(const std::string& key, const Json& value) {
  return std::string(StatusWith(key, value).message());
}

TEST(ModelConfigTest, ReadsTheDemoModel) {
  absl::StatusOr<ModelConfig> c =
      LoadModelConfig(std::string(ASYNCTLS_SOURCE_DIR) + "/deploy/models/demo-qwen3");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->layers, 6);
  EXPECT_EQ(c->hidden, 256);
  EXPECT_EQ(c->query_heads, 8);
  EXPECT_EQ(c->kv_heads, 2);
  EXPECT_EQ(c->head_dim, 128);
  EXPECT_EQ(c->intermediate, 704);
  EXPECT_EQ(c->vocab, 2048);
  EXPECT_EQ(c->max_positions, 131072);
  EXPECT_FLOAT_EQ(c->rms_eps, 1e-6f);
  EXPECT_TRUE(c->tied_embeddings);
  EXPECT_EQ(c->rope_theta, 1e6);
  EXPECT_EQ(c->rope_scale, 1.0f);
  EXPECT_THAT(c->eos, ElementsAre(2043, 2045));
  EXPECT_FLOAT_EQ(*c->temperature, 0.6f);
  EXPECT_FLOAT_EQ(*c->top_p, 0.95f);
  EXPECT_EQ(*c->top_k, 20u);
  EXPECT_TRUE(*c->do_sample);
}

TEST(ModelConfigTest, RefusesTheOtherFamilyByName) {
  const absl::Status status =
      LoadModelConfig(std::string(ASYNCTLS_SOURCE_DIR) + "/deploy/models/demo-glm4-moe-lite")
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("demo-glm4-moe-lite/config.json: architectures is Glm4MoeLiteForCausalLM, "
                        "not supported by this version (only Qwen3ForCausalLM)"));
}

TEST(ModelConfigTest, ReadsTheNewStyle) {
  Json config = TinyModel().config;
  config.erase("rope_theta");
  config.erase("rope_scaling");
  config.erase("torch_dtype");
  config["rope_parameters"] = {{"rope_theta", 5e5}, {"rope_type", "default"}};
  config["dtype"] = "bfloat16";
  config["layer_types"] = {"full_attention", "full_attention"};
  absl::StatusOr<ModelConfig> c = Parse(config);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->rope_theta, 5e5);
  EXPECT_EQ(c->inv_frequency.size(), 16u);
  EXPECT_FLOAT_EQ(c->inv_frequency[0], 1.0f);
  EXPECT_NEAR(c->inv_frequency[8], 1 / std::sqrt(5e5), 1e-9);
  config["rope_theta"] = 1e6;
  EXPECT_THAT(std::string(Parse(config).status().message()),
              HasSubstr("rope_theta is 1000000.0, must be rope_parameters.rope_theta"));
}

TEST(ModelConfigTest, UnitesTheEndTokens) {
  Json config = TinyModel().config;
  config["eos_token_id"] = {5, 3};
  absl::StatusOr<ModelConfig> c = Parse(config, {{"eos_token_id", {3, 9}}, {"temperature", 0.5}});
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_THAT(c->eos, ElementsAre(3, 5, 9));
  EXPECT_FALSE(c->top_k.has_value());
  EXPECT_THAT(std::string(Parse(config, {{"eos_token_id", 67}}).status().message()),
              HasSubstr("generation_config.json: eos_token_id is 67, must be ids from 0 to 66"));
  EXPECT_FALSE(Parse(config, {{"temperature", -1}}).ok());
}

TEST(ModelConfigTest, YarnTestVector) {
  const YarnRange range = YarnCorrectionRange(128, 1e6, 32768, 32, 1);
  EXPECT_EQ(range.low, 23);
  EXPECT_EQ(range.high, 40);
  Json config = TinyModel().config;
  config["head_dim"] = 128;
  config["rope_theta"] = 1e6;
  config["max_position_embeddings"] = 40960;
  config["rope_scaling"] = {
      {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
  absl::StatusOr<ModelConfig> c = Parse(config);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_FLOAT_EQ(c->rope_scale, 1.138629436f);
  EXPECT_NEAR(c->rope_scale * c->rope_scale, 1.296476993, 1e-6);
  EXPECT_EQ(c->max_positions, 131072);
  const auto plain = [](int i) { return std::pow(1e6, -i / 64.0); };
  EXPECT_NEAR(c->inv_frequency[23] / plain(23), 1, 1e-6);     // kept
  EXPECT_NEAR(c->inv_frequency[40] / plain(40), 0.25, 1e-6);  // divided
  const double ramp = (30 - 23) / 17.0;                       // mixed
  EXPECT_NEAR(c->inv_frequency[30] / plain(30), 1 - ramp + ramp / 4, 1e-6);
  // The old key for the type, and a factor given by the file.
  config["rope_scaling"] = {{"type", "yarn"}, {"factor", 2.0}, {"attention_factor", 1.5}};
  c = Parse(config);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->rope_scale, 1.5f);
  EXPECT_EQ(c->rope_original, 40960);
}

TEST(ModelConfigTest, RefusesWhatWouldChangeTheForwardPass) {
  for (const auto& [key, value] : std::vector<std::pair<std::string, Json>>{
           {"architectures", Json::array({"LlamaForCausalLM"})},
           {"hidden_act", "gelu"},
           {"attention_bias", true},
           {"use_sliding_window", true},
           {"layer_types", {"full_attention", "sliding_attention"}},
           {"torch_dtype", "float16"},
           {"dtype", "float32"},
           {"quantization_config", Json::object()},
           {"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}}},
           {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 8}, {"mscale", 1}}}}) {
    const absl::Status status = StatusWith(key, value);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << key << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json: "));
  }
}

TEST(ModelConfigTest, NamesFieldValueAndLimit) {
  EXPECT_EQ(MessageWith("num_hidden_layers", 0),
            "config.json: num_hidden_layers is 0, must be an integer from 1 to 1024");
  EXPECT_EQ(MessageWith("hidden_size", -256),
            "config.json: hidden_size is -256, must be an integer from 1 to 65536");
  EXPECT_EQ(MessageWith("vocab_size", 1e5),
            "config.json: vocab_size is 100000.0, must be an integer from 1 to 4194304");
  EXPECT_EQ(
      MessageWith("vocab_size", 18446744073709551615u),
      "config.json: vocab_size is 18446744073709551615, must be an integer from 1 to 4194304");
  EXPECT_EQ(MessageWith("num_attention_heads", 5),
            "config.json: num_attention_heads is 5, must be a multiple of num_key_value_heads, 2");
  EXPECT_EQ(MessageWith("head_dim", 15), "config.json: head_dim is 15, must be even");
  EXPECT_EQ(MessageWith("rms_norm_eps", std::nan("")),
            "config.json: rms_norm_eps is null, must be a number from 1e-12 to 0.1");
  EXPECT_EQ(MessageWith("rms_norm_eps", "1e-6"),
            "config.json: rms_norm_eps is \"1e-6\", must be a number from 1e-12 to 0.1");
  EXPECT_EQ(MessageWith("tie_word_embeddings", 1),
            "config.json: tie_word_embeddings is 1, must be true or false");
  EXPECT_EQ(MessageWith("rope_theta", nullptr), "config.json: rope_theta is missing");
  EXPECT_EQ(MessageWith("rope_scaling", {{"rope_type", "yarn"}}),
            "config.json: rope_scaling: factor is missing");
  EXPECT_EQ(MessageWith("layer_types", Json::array({"full_attention"})),
            "config.json: layer_types is [\"full_attention\"], must be an array of "
            "num_hidden_layers names");
  EXPECT_EQ(std::string(Parse(Json::array()).status().message()), "config.json: not an object");
}

TEST(ModelConfigTest, NamesAMissingOrBrokenFile) {
  const TempDir dir;
  EXPECT_EQ(LoadModelConfig(dir.path()).status().code(), absl::StatusCode::kNotFound);
  dir.Write("config.json", "{\"hidden_size\": 1e999}");
  EXPECT_THAT(std::string(LoadModelConfig(dir.path()).status().message()),
              HasSubstr("config.json: not valid JSON"));
  TinyModel().WriteConfig(dir.path());
  EXPECT_TRUE(LoadModelConfig(dir.path()).ok());
  dir.Write("generation_config.json", "[1, 2");
  EXPECT_THAT(std::string(LoadModelConfig(dir.path()).status().message()),
              HasSubstr("generation_config.json: not valid JSON"));
}

}  // namespace
}  // namespace asynctls
