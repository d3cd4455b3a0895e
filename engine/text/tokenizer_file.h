// SPDX-License-Identifier: Apache-2.0
// Reads tokenizer.json into plain data, and refuses what the tokenizer does not implement: anything
// but byte-level BPE with NFC and Qwen2's split. Nothing here is used after loading.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/text/added_tokens.h"
#include "engine/text/bpe.h"

namespace asynctls {

struct TokenizerFile {
  // A token's longest permitted spelling, in bytes of the file.
  static constexpr size_t kMaxTokenBytes = 4096;

  // By id. Empty where there is no token (ids may have holes).
  std::vector<std::string> spellings;  // as in the file
  std::vector<std::string> bytes;      // what the token stands for
  std::vector<AddedToken> added;
  std::array<uint32_t, 256> byte_ids;  // of the single-byte tokens
  std::vector<Bpe::Merge> merges;      // by rank
};

// Errors: INVALID_ARGUMENT naming `origin`, the field and, where there is one, the limit.
absl::StatusOr<TokenizerFile> ParseTokenizerFile(absl::string_view json, absl::string_view origin);

}  // namespace asynctls
