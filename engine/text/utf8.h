// SPDX-License-Identifier: Apache-2.0
// UTF-8 as the tokenizer needs it: checking, decoding what was checked, and the lossy reading of
// arbitrary bytes that the detokenizer streams.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace asynctls {

// Offset of the first byte that is not part of a well-formed sequence; text.size() if there is
// none.
size_t FirstInvalidUtf8(absl::string_view text);

// Number of leading ASCII bytes.
size_t AsciiPrefix(absl::string_view text);

// Appends `bytes` to `out`, each maximal ill-formed part replaced by U+FFFD (the practice of the
// Unicode standard, section 3.9, and of HuggingFace). A sequence that is well-formed so far but
// ends early at the end of `bytes` (1 to 3 bytes) is left out. Returns the number of bytes
// consumed.
size_t AppendLossyUtf8(absl::string_view bytes, std::string& out);

void AppendUtf8(char32_t c, std::string& out);

inline constexpr absl::string_view kReplacementCharacter = "\xef\xbf\xbd";

// Bytes of the sequence that starts with `lead`. Requires: the lead of a well-formed sequence.
inline int Utf8Length(uint8_t lead) {
  return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

// Requires: a well-formed sequence at `p`.
inline char32_t DecodeUtf8(const char* p) {
  const auto byte = [p](int i) { return static_cast<char32_t>(static_cast<uint8_t>(p[i])); };
  const char32_t lead = byte(0);
  if (lead < 0x80) return lead;
  if (lead < 0xe0) return (lead & 0x1f) << 6 | (byte(1) & 0x3f);
  if (lead < 0xf0) return (lead & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
  return (lead & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
}

}  // namespace asynctls
