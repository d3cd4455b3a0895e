// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/tokenizer_archive.h"

#include <openssl/sha.h>
#include <zlib.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/json.h"

namespace asynctls {
namespace {

constexpr const char* kFiles[] = {"tokenizer.json",
                                  "tokenizer_config.json",
                                  "config.json",
                                  "generation_config.json",
                                  "special_tokens_map.json",
                                  "vocab.json",
                                  "merges.txt",
                                  "chat_template.jinja"};
constexpr int64_t kMaxFileBytes = 64 << 20;  // so that an archive is far below zip's 4 GiB

struct Entry {
  std::string name;
  uint32_t crc;
  uint32_t size;
  uint32_t offset;  // of its local header
};

void Put(std::string& out, uint32_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> 8 * i));
}

// What the local header and the directory's entry have in common: version needed (2.0), flags,
// method (stored), time and date (1980-01-01, so that equal files make equal archives), crc, sizes,
// lengths of name and extra field.
// https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.
void PutCommon(std::string& out, const Entry& entry) {
  Put(out, 20, 2);
  Put(out, 0, 2);
  Put(out, 0, 2);
  Put(out, 0x00210000, 4);
  Put(out, entry.crc, 4);
  Put(out, entry.size, 4);
  Put(out, entry.size, 4);
  Put(out, static_cast<uint32_t>(entry.name.size()), 2);
  Put(out, 0, 2);
}

void PutFile(std::string& out,
             std::vector<Entry>& entries,
             const char* name,
             absl::string_view data) {
  const auto* bytes = reinterpret_cast<const Bytef*>(data.data());
  const auto size = static_cast<uint32_t>(data.size());
  entries.push_back({name,
                     static_cast<uint32_t>(crc32(0, bytes, size)),
                     size,
                     static_cast<uint32_t>(out.size())});
  Put(out, 0x04034b50, 4);
  PutCommon(out, entries.back());
  absl::StrAppend(&out, name, data);
}

void PutDirectory(std::string& out, const std::vector<Entry>& entries) {
  const auto start = static_cast<uint32_t>(out.size());
  for (const Entry& entry : entries) {
    Put(out, 0x02014b50, 4);
    Put(out, 20, 2);  // version made by
    PutCommon(out, entry);
    Put(out, 0, 4);  // comment length, disk
    Put(out, 0, 2);  // internal attributes
    Put(out, 0, 4);  // external attributes
    Put(out, entry.offset, 4);
    out += entry.name;
  }
  const auto end = static_cast<uint32_t>(out.size());
  const auto count = static_cast<uint32_t>(entries.size());
  Put(out, 0x06054b50, 4);
  Put(out, 0, 4);  // disk numbers
  Put(out, count, 2);
  Put(out, count, 2);
  Put(out, end - start, 4);
  Put(out, start, 4);
  Put(out, 0, 2);  // comment length
}

std::string Sha256(absl::string_view data) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(), digest);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

}  // namespace

absl::StatusOr<const TokenizerArchive::Content*> TokenizerArchive::Get() {
  std::lock_guard lock(mu_);
  if (content_.has_value()) return &*content_;
  Content content;
  std::vector<Entry> entries;
  for (const char* name : kFiles) {
    const absl::StatusOr<std::string> data =
        ReadFile(absl::StrCat(model_dir_, "/", name), kMaxFileBytes);
    if (data.ok()) PutFile(content.zip, entries, name, *data);
  }
  if (entries.empty() || entries.front().name != kFiles[0]) {
    return absl::FailedPreconditionError("the model's folder holds no tokenizer.json");
  }
  PutDirectory(content.zip, entries);
  content.sha256 = Sha256(content.zip);
  content_ = std::move(content);
  return &*content_;
}

}  // namespace asynctls
