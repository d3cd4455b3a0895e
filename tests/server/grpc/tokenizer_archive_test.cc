// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/tokenizer_archive.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/sha.h>
#include <zlib.h>

#include <cstring>
#include <map>

#include "absl/strings/escaping.h"
#include "engine/base/json.h"

namespace asynctls::testing {
namespace {

uint32_t Get(const std::string& bytes, size_t at, int count) {
  uint32_t value = 0;
  for (int i = 0; i < count; ++i) value |= uint32_t{static_cast<uint8_t>(bytes[at + i])} << 8 * i;
  return value;
}

// Reads a zip archive as readers do: from its directory.
std::map<std::string, std::string> Unzip(const std::string& zip) {
  std::map<std::string, std::string> files;
  const size_t end = zip.size() - 22;
  EXPECT_EQ(Get(zip, end, 4), 0x06054b50u);
  size_t at = Get(zip, end + 16, 4);
  EXPECT_EQ(at + Get(zip, end + 12, 4), end);
  for (uint32_t i = 0; i < Get(zip, end + 10, 2); ++i) {
    EXPECT_EQ(Get(zip, at, 4), 0x02014b50u);
    const uint32_t crc = Get(zip, at + 16, 4), size = Get(zip, at + 24, 4);
    const uint32_t name_size = Get(zip, at + 28, 2), offset = Get(zip, at + 42, 4);
    const std::string name = zip.substr(at + 46, name_size);
    EXPECT_EQ(Get(zip, offset, 4), 0x04034b50u);
    EXPECT_EQ(Get(zip, offset + 14, 4), crc);
    EXPECT_EQ(zip.substr(offset + 30, name_size), name);
    files[name] = zip.substr(offset + 30 + name_size, size);
    EXPECT_EQ(crc32(0, reinterpret_cast<const Bytef*>(files[name].data()), size), crc);
    at += 46 + name_size;
  }
  EXPECT_EQ(at, end);
  return files;
}

TEST(TokenizerArchiveTest, HoldsTheFilesOfTheModel) {
  const std::string model = std::string(ASYNCTLS_SOURCE_DIR) + "/deploy/models/demo-qwen3";
  TokenizerArchive archive(model);
  const auto content = archive.Get();
  ASSERT_TRUE(content.ok()) << content.status();
  const auto files = Unzip((*content)->zip);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "config.json"}) {
    ASSERT_TRUE(files.count(name)) << name;
    EXPECT_EQ(files.at(name), *ReadFile(model + "/" + name)) << name;
  }
  EXPECT_EQ(files.count("model.safetensors"), 0u);
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>((*content)->zip.data()),
         (*content)->zip.size(),
         digest);
  EXPECT_EQ((*content)->sha256,
            absl::BytesToHexString(
                absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest))));
  EXPECT_EQ(*archive.Get(), *content);  // made once
}

TEST(TokenizerArchiveTest, AFolderWithoutATokenizerHasNone) {
  TokenizerArchive archive("/nowhere");
  EXPECT_EQ(archive.Get().status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace asynctls::testing
