// SPDX-License-Identifier: Apache-2.0
#include "engine/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "engine/text/utf8.h"

namespace asynctls {
namespace {

constexpr char32_t kCharCount = 0x110000;

struct Range {
  char32_t first, last;
};

// Letters and numbers of Unicode 15.1 and 16, which HuggingFace's regular expressions know and
// utf8proc 2.8 (Unicode 15.0) does not.
constexpr Range kNewLetters[] = {
    {0x1c89, 0x1c8a},   {0xa7cb, 0xa7cd},   {0xa7da, 0xa7dc},   {0x105c0, 0x105f3},
    {0x10d4a, 0x10d65}, {0x10d6f, 0x10d85}, {0x10ec2, 0x10ec4}, {0x11380, 0x11389},
    {0x1138b, 0x1138b}, {0x1138e, 0x1138e}, {0x11390, 0x113b5}, {0x113b7, 0x113b7},
    {0x113d1, 0x113d1}, {0x113d3, 0x113d3}, {0x11bc0, 0x11be0}, {0x13460, 0x143fa},
    {0x16100, 0x1611d}, {0x16d40, 0x16d6c}, {0x18cff, 0x18cff}, {0x1e5d0, 0x1e5ed},
    {0x1e5f0, 0x1e5f0}, {0x2ebf0, 0x2ee5d}};
constexpr Range kNewNumbers[] = {{0x10d40, 0x10d49},
                                 {0x116d0, 0x116e3},
                                 {0x11bf0, 0x11bf9},
                                 {0x16130, 0x16139},
                                 {0x16d70, 0x16d79},
                                 {0x1ccf0, 0x1ccf9},
                                 {0x1e5f1, 0x1e5fa}};

// Combining marks that are younger than the tables of HuggingFace's normalizer (Unicode 9): it
// takes them for ordinary characters.
constexpr Range kMarksUnknownToReference[] = {
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},
    {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},   {0x10d24, 0x10d27},
    {0x10eab, 0x10eac}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070},
    {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a}, {0x1193d, 0x1193e},
    {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47},
    {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97},
    {0x16ff0, 0x16ff1}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef},
    {0x10efd, 0x10eff}, {0x11f41, 0x11f42}, {0x1e08f, 0x1e08f}, {0x1e4ec, 0x1e4ef}};

// The one composite of two starters that is younger than those tables.
constexpr char32_t kCompositeUnknownToReference = 0x11938;

template <size_t kSize>
bool Contains(const Range (&ranges)[kSize], char32_t c) {
  return std::any_of(std::begin(ranges), std::end(ranges), [c](Range range) {
    return range.first <= c && c <= range.last;
  });
}

bool IsSpace(char32_t c) {
  return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

uint8_t ClassOf(char32_t c) {
  if (c == '\r' || c == '\n') return kSpace | kNewline;
  if (IsSpace(c)) return kSpace;
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) return kLetter;
  if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) return kNumber;
  return 0;
}

// ---- normalization

// Hangul syllables are arithmetic (Unicode standard, section 3.12).
constexpr char32_t kHangulS = 0xac00, kHangulL = 0x1100, kHangulV = 0x1161, kHangulT = 0x11a7;
constexpr char32_t kHangulLCount = 19, kHangulVCount = 21, kHangulTCount = 28;
constexpr char32_t kHangulSCount = kHangulLCount * kHangulVCount * kHangulTCount;

bool IsHangulSyllable(char32_t c) { return c >= kHangulS && c < kHangulS + kHangulSCount; }
bool JoinsHangul(char32_t c) {
  return (c >= kHangulV && c < kHangulV + kHangulVCount) ||
         (c > kHangulT && c < kHangulT + kHangulTCount);
}

int CombiningClass(char32_t c) {
  const int combining = utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class;
  return combining != 0 && Contains(kMarksUnknownToReference, c) ? 0 : combining;
}

constexpr int kMaxDecomposition = 8;  // 4 in Unicode 14

// Full canonical decomposition; returns its length.
int Decompose(char32_t c, utf8proc_int32_t (&out)[kMaxDecomposition]) {
  if (c == kCompositeUnknownToReference) {
    out[0] = static_cast<utf8proc_int32_t>(c);
    return 1;
  }
  int boundary = 0;
  return static_cast<int>(utf8proc_decompose_char(
      static_cast<utf8proc_int32_t>(c), out, kMaxDecomposition, UTF8PROC_DECOMPOSE, &boundary));
}

// Which two characters compose to which one. A composite is whatever has a decomposition of two
// parts or more and is its own NFC; its last part is a single character, and the parts before it
// compose to its first.
class Compositions {
 public:
  static const Compositions& Get() {
    static const Compositions* const compositions = new Compositions;
    return *compositions;
  }

  // 0 if the two do not compose.
  char32_t Find(char32_t a, char32_t b) const {
    if (a >= kHangulL && a < kHangulL + kHangulLCount && b >= kHangulV &&
        b < kHangulV + kHangulVCount) {
      return kHangulS + ((a - kHangulL) * kHangulVCount + (b - kHangulV)) * kHangulTCount;
    }
    if (IsHangulSyllable(a) && (a - kHangulS) % kHangulTCount == 0 && b > kHangulT &&
        b < kHangulT + kHangulTCount) {
      return a + (b - kHangulT);
    }
    const auto found = pairs_.find(Key(a, b));
    return found == pairs_.end() ? 0 : found->second;
  }

  // Characters that NFC never leaves alone, and those that may join the one before them.
  const std::vector<char32_t>& unstable() const { return unstable_; }

 private:
  static uint64_t Key(char32_t a, char32_t b) { return uint64_t{a} << 32 | b; }

  Compositions() {
    utf8proc_int32_t parts[kMaxDecomposition];
    for (char32_t c = 0; c < kCharCount; ++c) {
      if (JoinsHangul(c)) unstable_.push_back(c);
      if (c < 0xc0 || IsHangulSyllable(c)) continue;
      const int count = Decompose(c, parts);
      if (count == 1 && parts[0] == static_cast<utf8proc_int32_t>(c)) continue;
      if (count < 2 || NfcByUtf8proc(parts, count) != c) {
        unstable_.push_back(c);
        continue;
      }
      const char32_t first = NfcByUtf8proc(parts, count - 1);
      const char32_t last = static_cast<char32_t>(parts[count - 1]);
      pairs_[Key(first, last)] = c;
      unstable_.push_back(last);
    }
  }

  // The single character that `parts` compose to; 0 if it is not one.
  static char32_t NfcByUtf8proc(const utf8proc_int32_t* parts, int count) {
    utf8proc_int32_t copy[kMaxDecomposition + 1];
    std::copy(parts, parts + count, copy);
    const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    return utf8proc_normalize_utf32(copy, count, options) == 1 ? static_cast<char32_t>(copy[0]) : 0;
  }

  absl::flat_hash_map<uint64_t, char32_t> pairs_;
  std::vector<char32_t> unstable_;
};

struct Mark {
  char32_t c;
  int combining;
};

void AppendDecomposition(char32_t c, std::vector<Mark>& out) {
  utf8proc_int32_t parts[kMaxDecomposition];
  const int count = Decompose(c, parts);
  for (int i = 0; i < count; ++i) {
    const auto part = static_cast<char32_t>(parts[i]);
    out.push_back({part, CombiningClass(part)});
  }
}

// Puts each run of marks in the order of their combining classes (canonical ordering).
void Reorder(std::vector<Mark>& marks) {
  auto run = marks.begin();
  while (run != marks.end()) {
    if (run->combining == 0) {
      ++run;
      continue;
    }
    const auto end = std::find_if(run, marks.end(), [](Mark m) { return m.combining == 0; });
    std::stable_sort(run, end, [](Mark a, Mark b) { return a.combining < b.combining; });
    run = end;
  }
}

// Composes in place (Unicode standard, section 3.11, D117): a mark joins the last starter unless
// something of the same or a higher class, or another starter, stands between them.
void Compose(std::vector<Mark>& marks) {
  const Compositions& compositions = Compositions::Get();
  constexpr size_t kNone = static_cast<size_t>(-1);
  size_t starter = kNone, out = 0;
  for (size_t i = 0; i < marks.size(); ++i) {
    const Mark mark = marks[i];
    if (starter != kNone) {
      const bool adjacent = starter + 1 == out;
      const bool blocked = !adjacent && marks[out - 1].combining >= mark.combining;
      const char32_t whole = blocked ? 0 : compositions.Find(marks[starter].c, mark.c);
      if (whole != 0) {
        marks[starter].c = whole;
        continue;
      }
    }
    if (mark.combining == 0) starter = out;
    marks[out++] = mark;
  }
  marks.resize(out);
}

}  // namespace

CharTable::CharTable() : classes_(kCharCount) {
  for (char32_t c = 0; c < kCharCount; ++c) {
    classes_[c] = ClassOf(c) | (CombiningClass(c) != 0 ? kNormalizable : 0);
  }
  for (Range range : kNewLetters) {
    for (char32_t c = range.first; c <= range.last; ++c) classes_[c] = kLetter;
  }
  for (Range range : kNewNumbers) {
    for (char32_t c = range.first; c <= range.last; ++c) classes_[c] = kNumber;
  }
  for (char32_t c : Compositions::Get().unstable()) classes_[c] |= kNormalizable;
  for (int b = 0; b < 256; ++b) bytes_[b] = b < 0x80 ? classes_[b] : uint8_t{kMultiByte};
}

const CharTable& CharTable::Get() {
  static const CharTable* const table = new CharTable;
  return *table;
}

bool IsSurelyNfc(absl::string_view text) {
  const CharTable& table = CharTable::Get();
  const char* p = text.data();
  const char* const end = p + text.size();
  while (p < end) {
    if (static_cast<uint8_t>(*p) < 0x80) {
      p += AsciiPrefix({p, static_cast<size_t>(end - p)});
      continue;
    }
    if (table.of(DecodeUtf8(p)) & kNormalizable) return false;
    p += Utf8Length(static_cast<uint8_t>(*p));
  }
  return true;
}

std::string NormalizeNfc(absl::string_view text) {
  const CharTable& table = CharTable::Get();
  std::string out;
  out.reserve(text.size());
  std::vector<Mark> marks;
  const char* p = text.data();
  const char* const end = p + text.size();
  const char* last_stable = p;  // start of the last character that is a boundary
  const char* copied = p;       // everything before is in `out`
  while (p < end) {
    const char32_t c = DecodeUtf8(p);
    const char* const next = p + Utf8Length(static_cast<uint8_t>(*p));
    if (!(table.of(c) & kNormalizable)) {
      last_stable = p;
      p = next;
      continue;
    }
    // A segment from the last boundary up to the next one is normalized by itself.
    out.append(copied, last_stable);
    marks.clear();
    const char* q = last_stable;
    while (q < end) {
      const char32_t part = DecodeUtf8(q);
      if (q > p && !(table.of(part) & kNormalizable)) break;
      AppendDecomposition(part, marks);
      q += Utf8Length(static_cast<uint8_t>(*q));
    }
    Reorder(marks);
    Compose(marks);
    for (Mark mark : marks) AppendUtf8(mark.c, out);
    p = last_stable = copied = q;
  }
  out.append(copied, end);
  return out;
}

}  // namespace asynctls
