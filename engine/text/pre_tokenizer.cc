// SPDX-License-Identifier: Apache-2.0
#include "engine/text/pre_tokenizer.h"

#include "engine/text/utf8.h"

namespace asynctls {
namespace {

uint8_t Byte(const char* p) { return static_cast<uint8_t>(*p); }

// Class of the character at `p`.
inline uint8_t ClassAt(const CharTable& table, const char* p) {
  const uint8_t of_byte = table.byte(*p);
  return of_byte & kMultiByte ? table.of(DecodeUtf8(p)) : of_byte;
}

// End of the run of characters from `p` on that have one of the classes in `wanted`, or, with
// kWanted false, none of them.
template <bool kWanted>
inline const char* SkipRun(const CharTable& table,
                           const char* p,
                           const char* end,
                           uint8_t classes) {
  while (p < end) {
    const uint8_t of_byte = table.byte(*p);
    if (of_byte & kMultiByte) {
      if (((table.of(DecodeUtf8(p)) & classes) != 0) != kWanted) break;
      p += Utf8Length(Byte(p));
    } else {
      if (((of_byte & classes) != 0) != kWanted) break;
      ++p;
    }
  }
  return p;
}

// Length of the contraction ('s 't 're 've 'm 'll 'd in any case) at the apostrophe `p`, or 0.
int ContractionLength(const char* p, const char* end) {
  const auto lower = [p, end](int i) { return p + i < end ? Byte(p + i) | 0x20 : 0; };
  switch (lower(1)) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return 2;
    case 'r':
    case 'v':
      return lower(2) == 'e' ? 3 : 0;
    case 'l':
      return lower(2) == 'l' ? 3 : 0;
    default:
      // U+017F, the long s, is an s to a pattern that ignores case.
      return end - p >= 3 && Byte(p + 1) == 0xc5 && Byte(p + 2) == 0xbf ? 3 : 0;
  }
}

// White space that no earlier alternative takes: \s*[\r\n]+|\s+(?!\S)|\s+
const char* SpaceEnd(const CharTable& table, const char* p, const char* end) {
  const char* run = p;
  const char* last = p;               // start of the run's last character
  const char* newline_end = nullptr;  // end of the run's last newline
  while (run < end) {
    const uint8_t kind = ClassAt(table, run);
    if (!(kind & kSpace)) break;
    last = run;
    run += Utf8Length(Byte(run));
    if (kind & kNewline) newline_end = run;
  }
  if (newline_end != nullptr) return newline_end;
  // All of it at the end of the text; before a word, its last character is left to the word.
  return run == end || last == p ? run : last;
}

}  // namespace

const char* NextWord(const CharTable& table, const char* p, const char* end) {
  constexpr uint8_t kNotSymbol = kSpace | kLetter | kNumber;
  const uint8_t first = ClassAt(table, p);
  if (first & kLetter) return SkipRun<true>(table, p + Utf8Length(Byte(p)), end, kLetter);
  const char* const second = p + Utf8Length(Byte(p));
  if (first & kNumber) return second;
  if (*p == '\'') {
    if (const int length = ContractionLength(p, end)) return p + length;
  }
  const uint8_t next = second < end ? ClassAt(table, second) : uint8_t{kSpace};
  if (!(first & kNewline) && (next & kLetter)) return SkipRun<true>(table, second, end, kLetter);
  if (!(first & kSpace) || (*p == ' ' && !(next & kNotSymbol))) {
    const char* const symbols = SkipRun<false>(table, second, end, kNotSymbol);
    return SkipRun<true>(table, symbols, end, kNewline);
  }
  return SpaceEnd(table, p, end);
}

}  // namespace asynctls
