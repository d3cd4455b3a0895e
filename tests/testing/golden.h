// SPDX-License-Identifier: Apache-2.0
// The goldens of the demo model: prompts, the reference's logits at their last four positions, and
// its greedy continuation with margins (tests/golden/demo-qwen3/golden.json says how they were
// made).
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "engine/base/json.h"
#include "engine/base/safetensors.h"

namespace asynctls {

inline std::string DemoModel() {
  return std::string(ASYNCTLS_SOURCE_DIR) + "/deploy/models/demo-qwen3";
}

struct Golden {
  std::string name;
  std::vector<uint32_t> prompt;
  std::vector<float> logits;  // [4, vocab]
  std::vector<uint32_t> greedy;
  std::vector<float> margin;  // of each greedy token: logit minus the second best
  size_t vocab = 0;
};

template <typename To, typename From>
std::vector<To> ReadAs(const Tensor& tensor) {
  std::vector<From> raw(tensor.bytes.size() / sizeof(From));
  std::memcpy(raw.data(), tensor.bytes.data(), raw.size() * sizeof(From));
  return {raw.begin(), raw.end()};
}

inline std::vector<Golden> LoadGoldens() {
  const std::string dir = std::string(ASYNCTLS_SOURCE_DIR) + "/tests/golden/demo-qwen3";
  absl::StatusOr<Json> json = ReadJsonFile(dir + "/golden.json");
  absl::StatusOr<TensorSource> source = TensorSource::OpenFile(dir + "/golden.safetensors");
  EXPECT_TRUE(json.ok() && source.ok()) << json.status() << source.status();
  std::vector<Golden> goldens;
  for (const Json& entry : (*json)["prompts"]) {
    const auto tensor = [&](const char* what) {
      return *source->Find(what + std::string(".") + std::to_string(goldens.size()));
    };
    goldens.push_back({.name = entry["name"].get<std::string>(),
                       .prompt = ReadAs<uint32_t, int32_t>(tensor("prompt")),
                       .logits = ReadAs<float, float>(tensor("logits")),
                       .greedy = ReadAs<uint32_t, int32_t>(tensor("greedy")),
                       .margin = ReadAs<float, float>(tensor("margin")),
                       .vocab = static_cast<size_t>(tensor("logits").shape[1])});
  }
  return goldens;
}

}  // namespace asynctls
