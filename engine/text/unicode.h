// SPDX-License-Identifier: Apache-2.0
// What the tokenizer knows about characters: the four classes its split pattern tells apart, and
// normalization form C. Tables come from utf8proc, mended where HuggingFace's own tables are of
// another Unicode version, because ids must be equal to theirs. Immutable after first use.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace asynctls {

// One byte per character; the bits exclude each other except kNewline, which comes with kSpace.
enum CharClass : uint8_t {
  kLetter = 1,           // \p{L}
  kNumber = 2,           // \p{N}
  kSpace = 4,            // \s
  kNewline = 8,          // \r or \n
  kNormalizable = 0x40,  // may be changed by NFC, or join with what is before it
  kMultiByte = 0x80,     // CharTable::byte only: not ASCII, look at CharTable::of
};

class CharTable {
 public:
  // The one table, built on first use (a few milliseconds). Thread-safe.
  static const CharTable& Get();

  uint8_t of(char32_t c) const { return classes_[c]; }  // c <= 0x10ffff
  uint8_t byte(char b) const { return bytes_[static_cast<uint8_t>(b)]; }

 private:
  CharTable();
  std::vector<uint8_t> classes_;
  std::array<uint8_t, 256> bytes_;
};

// True if no character of `text` can be changed by NFC: a quick check that may err towards false.
// Requires: valid UTF-8.
bool IsSurelyNfc(absl::string_view text);

// NFC of `text` in time linear in its length but for sorting each run of combining marks
// (n log n). Requires: valid UTF-8.
std::string NormalizeNfc(absl::string_view text);

}  // namespace asynctls
