// SPDX-License-Identifier: Apache-2.0
// Finds added tokens ("<|im_end|>") in raw text, before anything else looks at it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace asynctls {

struct AddedToken {
  uint32_t id;
  std::string content;  // not empty, at most AddedTokenFinder::kMaxBytes
  bool special;
};

// Immutable, hence thread-safe.
class AddedTokenFinder {
 public:
  // Bounds the time per byte of text.
  static constexpr size_t kMaxBytes = 256;

  explicit AddedTokenFinder(const std::vector<AddedToken>& tokens);

  struct Match {
    size_t begin, end;
    uint32_t id;
    bool special;
  };
  // The first match at or after `from`, the longest of those that begin there.
  std::optional<Match> Find(absl::string_view text, size_t from) const;

 private:
  struct Node {
    std::vector<std::pair<uint8_t, uint32_t>> children;  // by byte, ascending
    std::optional<uint32_t> token;                       // index into tokens_
  };
  std::optional<Match> LongestAt(absl::string_view text, size_t begin) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;  // a trie; 0 is its root
  std::array<bool, 256> begins_{};
  std::optional<char> only_first_byte_;  // of all tokens, if they agree
};

}  // namespace asynctls
