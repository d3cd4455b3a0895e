// SPDX-License-Identifier: Apache-2.0
#include "engine/text/utf8.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <random>

namespace asynctls {
namespace {

TEST(Utf8Test, FindsTheFirstInvalidByte) {
  const std::pair<std::string, size_t> cases[] = {
      {"", 0},
      {"abc", 3},
      {"\xc3\xa9", 2},
      {"a\x80", 1},             // a tail without a lead
      {"ab\xc3", 2},            // cut short
      {"\xc0\xaf", 0},          // overlong
      {"\xe0\x9f\xbf", 0},      // overlong
      {"\xed\xa0\x80", 0},      // a surrogate
      {"\xf4\x90\x80\x80", 0},  // beyond U+10FFFF
      {"\xf0\x9f\x98\x80\xff", 4},
      {std::string(100, 'a') + "\xff", 100},
  };
  for (const auto& [text, offset] : cases) EXPECT_EQ(FirstInvalidUtf8(text), offset) << text;
}

TEST(Utf8Test, EveryCharacterSurvivesEncodingAndDecoding) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string text;
    AppendUtf8(c, text);
    ASSERT_EQ(FirstInvalidUtf8(text), text.size());
    ASSERT_EQ(Utf8Length(static_cast<uint8_t>(text[0])), static_cast<int>(text.size()));
    ASSERT_EQ(DecodeUtf8(text.data()), c);
  }
}

// Validity agrees with another implementation on random bytes drawn from the interesting ones.
TEST(Utf8Test, AgreesWithUtf8procOnRandomBytes) {
  static constexpr char kBytes[] =
      "az\x80\x8f\x90\x9f\xa0\xbf\xc1\xc2\xdf\xe0\xe1\xed\xef\xf0\xf4\xf5";
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    std::string text;
    for (uint32_t n = random() % 8; n > 0; --n) text += kBytes[random() % (sizeof(kBytes) - 1)];
    size_t want = 0;
    while (want < text.size()) {
      utf8proc_int32_t c;
      const auto length =
          utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + want,
                           static_cast<utf8proc_ssize_t>(text.size() - want),
                           &c);
      if (length <= 0) break;
      want += length;
    }
    ASSERT_EQ(FirstInvalidUtf8(text), want);
  }
}

TEST(Utf8Test, CountsLeadingAscii) {
  EXPECT_EQ(AsciiPrefix(""), 0u);
  for (size_t n : {1, 7, 31, 32, 33, 100}) {
    EXPECT_EQ(AsciiPrefix(std::string(n, 'x')), n);
    EXPECT_EQ(AsciiPrefix(std::string(n, 'x') + "\xc3\xa9" + std::string(40, 'y')), n);
  }
}

// One U+FFFD for each maximal part of an ill-formed sequence: the Unicode standard's table 3-8.
TEST(Utf8Test, LossyReadingReplacesMaximalParts) {
  const auto lossy = [](absl::string_view bytes) {
    std::string out;
    const size_t consumed = AppendLossyUtf8(bytes, out);
    return std::make_pair(out, bytes.size() - consumed);
  };
  const std::string r(kReplacementCharacter);
  using Result = std::pair<std::string, size_t>;
  EXPECT_EQ(lossy("a\xf1\x80\x80\xe1\x80\xc2"
                  "b\x80"
                  "c"),
            Result("a" + r + r + r + "b" + r + "c", 0));
  EXPECT_EQ(lossy("\xc0\xaf\xe0\x80\xbf"), Result(r + r + r + r + r, 0));
  EXPECT_EQ(lossy("\xed\xa0\x80"), Result(r + r + r, 0));
  EXPECT_EQ(lossy("a\xe2\x82"), Result("a", 2));  // may go on: left out
  EXPECT_EQ(lossy("\xf0\x9f\x98"), Result("", 3));
  EXPECT_EQ(lossy("\xe2\x82\xac"), Result("\u20ac", 0));
}

}  // namespace
}  // namespace asynctls
