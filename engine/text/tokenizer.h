// SPDX-License-Identifier: Apache-2.0
// Tokenizer: text to ids and back, as a checkpoint's tokenizer.json says. Byte-level BPE with NFC
// and Qwen2's split only; ids are equal to HuggingFace's.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/text/added_tokens.h"
#include "engine/text/bpe.h"
#include "engine/text/tokenizer_file.h"

namespace asynctls {

// Const methods may be called from any number of threads at once. Each encode borrows a scratch (a
// word cache of 1 MiB) from a pool, so repeated words are cheap across calls as well.
class Tokenizer {
 public:
  static constexpr size_t kMaxTextBytes = size_t{1} << 28;

  // Errors: NOT_FOUND; INVALID_ARGUMENT naming the file, the field and the limit.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  // `origin` stands for the file in errors.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(absl::string_view json,
                                                          absl::string_view origin);

  // With `parse_special` false, text that spells a special token stays text. Added tokens that are
  // not special ("<think>") are ordinary vocabulary and are found either way (HuggingFace's
  // split_special_tokens). Nothing is added at the ends.
  // Errors: INVALID_ARGUMENT: not UTF-8 (names the byte offset), over kMaxTextBytes.
  absl::StatusOr<std::vector<uint32_t>> Encode(absl::string_view text, bool parse_special) const;

  // The bytes of the tokens in a row, read as UTF-8; what is not becomes U+FFFD.
  // Errors: INVALID_ARGUMENT naming the index of an id that is no token.
  absl::StatusOr<std::string> Decode(absl::Span<const uint32_t> ids, bool skip_special) const;

  // One more than the highest id. There may be holes.
  uint32_t vocab_size() const { return static_cast<uint32_t>(bytes_.size()); }
  // By the token's spelling in the file.
  std::optional<uint32_t> IdOf(absl::string_view token) const;
  // False for ids that are no token.
  bool IsSpecial(uint32_t id) const { return id < special_.size() && special_[id]; }
  // The bytes a token stands for, not always whole characters; empty for ids that are no token.
  absl::string_view BytesOf(uint32_t id) const;

 private:
  explicit Tokenizer(TokenizerFile file);

  class ScratchLease;
  void EncodeText(absl::string_view text, BpeScratch& scratch, std::vector<uint32_t>& out) const;

  const Bpe bpe_;
  const AddedTokenFinder added_;
  std::vector<std::string> bytes_;                  // by id
  std::vector<bool> special_;                       // by id
  absl::flat_hash_map<std::string, uint32_t> ids_;  // by spelling

  // A std::mutex because ThreadSanitizer sees it; the absl of Debian is built without.
  mutable std::mutex mu_;
  mutable std::vector<std::unique_ptr<BpeScratch>> idle_;  // guarded by mu_
};

}  // namespace asynctls
