// SPDX-License-Identifier: Apache-2.0
// Any bytes as config.json, the rest after a zero byte as generation_config.json: refused, or a
// configuration within the bounds of model_config.h.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "engine/base/check.h"
#include "engine/model/model_config.h"

namespace {

namespace fs = std::filesystem;

const std::string& Folder() {
  static const std::string* folder = [] {
    std::string name = "/dev/shm/config_fuzz_XXXXXX";
    ASYNCTLS_CHECK(mkdtemp(name.data()) != nullptr);
    std::atexit([] { fs::remove_all(Folder()); });
    return new std::string(name);
  }();
  return *folder;
}

void Put(const char* file, const std::string& text) {
  std::ofstream(Folder() + "/" + file, std::ios::binary) << text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace asynctls;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const size_t cut = bytes.find('\0');
  Put("config.json", bytes.substr(0, cut));
  fs::remove(Folder() + "/generation_config.json");
  if (cut != std::string::npos) Put("generation_config.json", bytes.substr(cut + 1));
  const auto config = LoadModelConfig(Folder());
  if (!config.ok()) return 0;
  ASYNCTLS_CHECK(config->layers >= 1 && config->layers <= 1024);
  ASYNCTLS_CHECK(config->hidden >= 1 && config->hidden <= 65536);
  ASYNCTLS_CHECK(config->kv_heads >= 1 && config->query_heads % config->kv_heads == 0);
  ASYNCTLS_CHECK(config->head_dim >= 2 && config->head_dim % 2 == 0);
  ASYNCTLS_CHECK(config->inv_frequency.size() == static_cast<size_t>(config->head_dim / 2));
  for (float f : config->inv_frequency) ASYNCTLS_CHECK(std::isfinite(f));
  ASYNCTLS_CHECK(config->vocab >= 1 && config->max_positions >= 1);
  return 0;
}
