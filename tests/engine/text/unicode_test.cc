// SPDX-License-Identifier: Apache-2.0
#include "engine/text/unicode.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <cstdlib>
#include <random>

#include "tests/engine/text/text_testing.h"

namespace asynctls {
namespace {

TEST(CharTableTest, ClassesHaveTheSizesOfTheReference) {
  // Counted with HuggingFace's tokenizers 0.23, character by character.
  const CharTable& table = CharTable::Get();
  int letters = 0, numbers = 0, spaces = 0, newlines = 0;
  for (char32_t c = 0; c < 0x110000; ++c) {
    const uint8_t kind = table.of(c);
    letters += (kind & kLetter) != 0;
    numbers += (kind & kNumber) != 0;
    spaces += (kind & kSpace) != 0;
    newlines += (kind & kNewline) != 0;
    ASSERT_LE(((kind & kLetter) != 0) + ((kind & kNumber) != 0) + ((kind & kSpace) != 0), 1);
  }
  EXPECT_EQ(letters, 141028);
  EXPECT_EQ(numbers, 1911);
  EXPECT_EQ(spaces, 25);
  EXPECT_EQ(newlines, 2);
}

TEST(CharTableTest, BytesAreClassifiedLikeCharacters) {
  const CharTable& table = CharTable::Get();
  for (int b = 0; b < 0x80; ++b) EXPECT_EQ(table.byte(static_cast<char>(b)), table.of(b));
  for (int b = 0x80; b < 0x100; ++b) EXPECT_EQ(table.byte(static_cast<char>(b)), kMultiByte);
}

std::string NfcByUtf8proc(const std::string& text) {
  utf8proc_uint8_t* out = nullptr;
  const auto length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()),
                   &out,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::string normalized(reinterpret_cast<const char*>(out), length);
  std::free(out);
  return normalized;
}

// Marks that the reference takes for ordinary characters show up as differences to utf8proc; the
// text here is drawn from characters of Unicode 9 and before.
TEST(NormalizeNfcTest, AgreesWithUtf8procOnRandomMarks) {
  static constexpr char32_t kChars[] = {
      'a',    'e',   's',    ' ',    0xe9,   0x300,  0x301,   0x323,   0x307,  0x327,
      0x334,  0x345, 0x1e69, 0x1100, 0x1161, 0x11a8, 0xac00,  0xac01,  0x928,  0x93c,
      0x958,  0x9c7, 0x9be,  0xcc6,  0xcc2,  0xcd5,  0xf71,   0xf72,   0xf73,  0x212b,
      0x2126, 0x344, 0x1f71, 0x3099, 0x30ab, 0x4f60, 0x1d15e, 0x110b9, 0x110ba};
  std::mt19937 random(3);
  for (int i = 0; i < 100000; ++i) {
    std::string text;
    for (uint32_t n = random() % 10; n > 0; --n) {
      AppendUtf8(kChars[random() % std::size(kChars)], text);
    }
    const std::string normalized = NormalizeNfc(text);
    ASSERT_EQ(normalized, NfcByUtf8proc(text)) << "text " << i;
    ASSERT_TRUE(!IsSurelyNfc(text) || normalized == text);
  }
}

TEST(NormalizeNfcTest, EveryCharacterByItself) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string text;
    AppendUtf8(c, text);
    const std::string normalized = NormalizeNfc(text);
    ASSERT_EQ(normalized, NfcByUtf8proc(text)) << std::hex << static_cast<uint32_t>(c);
    ASSERT_TRUE(!IsSurelyNfc(text) || normalized == text);
  }
}

TEST(NormalizeNfcTest, IsIdempotent) {
  std::mt19937 random(4);
  for (int i = 0; i < 5000; ++i) {
    const std::string once = NormalizeNfc(RandomText(random, 40));
    ASSERT_EQ(NormalizeNfc(once), once);
  }
}

TEST(NormalizeNfcTest, YoungMarksAreOrdinaryCharactersAsInTheReference) {
  // U+08D3 (Unicode 11, class 220) neither moves nor lets an accent pass.
  EXPECT_EQ(NormalizeNfc("a\u0301\u08d3"), "\u00e1\u08d3");
  EXPECT_EQ(NormalizeNfc("a\u08d3\u0301"), "a\u08d3\u0301");
  EXPECT_EQ(NormalizeNfc("\U00011935\U00011930"), "\U00011935\U00011930");
}

// utf8proc takes time quadratic in such a run, which is why it is not used for this.
TEST(NormalizeNfcTest, LongRunsOfMarksAreSorted) {
  std::string text = "a", want = "\u1ea1";
  constexpr int kPairs = 300000;
  for (int i = 0; i < kPairs; ++i) text += "\u0301\u0323";
  for (int i = 1; i < kPairs; ++i) want += "\u0323";
  for (int i = 0; i < kPairs; ++i) want += "\u0301";
  EXPECT_EQ(NormalizeNfc(text), want);
}

}  // namespace
}  // namespace asynctls
