// SPDX-License-Identifier: Apache-2.0
#include "engine/text/utf8.h"

#include <cstring>

namespace asynctls {
namespace {

enum class Form { kComplete, kInvalid, kCutShort };
struct Sequence {
  Form form;
  size_t length;  // of the sequence, or of its maximal well-formed beginning (at least 1)
};

// Reads one sequence from `p`. Requires: p < end. The bounds on the second byte keep out overlong
// forms, surrogates and what lies beyond U+10FFFF (Unicode standard, table 3-7).
Sequence ReadSequence(const char* p, const char* end) {
  const uint8_t lead = *p;
  if (lead < 0x80) return {Form::kComplete, 1};
  if (lead < 0xc2 || lead > 0xf4) return {Form::kInvalid, 1};
  uint8_t low = 0x80, high = 0xbf;
  if (lead == 0xe0) low = 0xa0;
  if (lead == 0xed) high = 0x9f;
  if (lead == 0xf0) low = 0x90;
  if (lead == 0xf4) high = 0x8f;
  const size_t length = Utf8Length(lead);
  for (size_t i = 1; i < length; ++i) {
    if (p + i == end) return {Form::kCutShort, i};
    const uint8_t byte = p[i];
    if (byte < low || byte > high) return {Form::kInvalid, i};
    low = 0x80, high = 0xbf;
  }
  return {Form::kComplete, length};
}

}  // namespace

size_t AsciiPrefix(absl::string_view text) {
  constexpr uint64_t kHighBits = 0x8080808080808080u;
  size_t i = 0;
  for (; i + 32 <= text.size(); i += 32) {
    uint64_t words[4];
    std::memcpy(words, text.data() + i, 32);
    if ((words[0] | words[1] | words[2] | words[3]) & kHighBits) break;
  }
  while (i < text.size() && static_cast<uint8_t>(text[i]) < 0x80) ++i;
  return i;
}

size_t FirstInvalidUtf8(absl::string_view text) {
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const char* p = begin;
  while (p < end) {
    if (static_cast<uint8_t>(*p) < 0x80) {
      p += AsciiPrefix({p, static_cast<size_t>(end - p)});
      continue;
    }
    const Sequence sequence = ReadSequence(p, end);
    if (sequence.form != Form::kComplete) break;
    p += sequence.length;
  }
  return p - begin;
}

size_t AppendLossyUtf8(absl::string_view bytes, std::string& out) {
  const char* const end = bytes.data() + bytes.size();
  const char* p = bytes.data();
  while (p < end) {
    const Sequence sequence = ReadSequence(p, end);
    if (sequence.form == Form::kCutShort) break;
    if (sequence.form == Form::kComplete) {
      out.append(p, sequence.length);
    } else {
      out.append(kReplacementCharacter.data(), kReplacementCharacter.size());
    }
    p += sequence.length;
  }
  return p - bytes.data();
}

void AppendUtf8(char32_t c, std::string& out) {
  const auto tail = [c](int shift) { return static_cast<char>(0x80 | ((c >> shift) & 0x3f)); };
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xc0 | c >> 6);
    out += tail(0);
  } else if (c < 0x10000) {
    out += static_cast<char>(0xe0 | c >> 12);
    out += tail(6);
    out += tail(0);
  } else {
    out += static_cast<char>(0xf0 | c >> 18);
    out += tail(12);
    out += tail(6);
    out += tail(0);
  }
}

}  // namespace asynctls
