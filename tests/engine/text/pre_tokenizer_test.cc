// SPDX-License-Identifier: Apache-2.0
#include "engine/text/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/engine/text/text_testing.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Words(const std::string& text) {
  std::vector<std::string> words;
  const char* const end = text.data() + text.size();
  for (const char* p = text.data(); p < end;) {
    const char* const next = NextWord(CharTable::Get(), p, end);
    words.emplace_back(p, next);
    if (next <= p || next > end) break;
    p = next;
  }
  return words;
}

// The pattern once more, alternative by alternative on decoded characters, with backtracking where
// the pattern has it. Slow and simple.
class ReferenceSplitter {
 public:
  explicit ReferenceSplitter(const std::string& text) {
    for (const char* p = text.data(); p < text.data() + text.size();
         p += Utf8Length(static_cast<uint8_t>(*p))) {
      chars_.push_back(DecodeUtf8(p));
    }
  }

  std::vector<std::string> Split() const {
    std::vector<std::string> words;
    for (size_t i = 0; i < chars_.size();) {
      const size_t end = Match(i);
      words.emplace_back();
      for (; i < end; ++i) AppendUtf8(chars_[i], words.back());
    }
    return words;
  }

 private:
  bool Is(size_t i, uint8_t classes) const {
    return i < chars_.size() && (CharTable::Get().of(chars_[i]) & classes);
  }
  bool IsSymbol(size_t i) const { return i < chars_.size() && !Is(i, kSpace | kLetter | kNumber); }
  size_t Run(size_t i, uint8_t classes) const {
    while (Is(i, classes)) ++i;
    return i;
  }
  bool LooksLike(size_t i, const char* text) const {
    for (; *text != 0; ++text, ++i) {
      if (i >= chars_.size()) return false;
      char32_t c = chars_[i];
      if (c >= 'A' && c <= 'Z') c += 'a' - 'A';
      if (c == 0x17f) c = 's';
      if (c != static_cast<char32_t>(*text)) return false;
    }
    return true;
  }

  size_t Match(size_t i) const {
    for (const char* contraction : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
      if (LooksLike(i, contraction)) return i + std::string(contraction).size();
    }
    if (!Is(i, kNewline | kLetter | kNumber) && Is(i + 1, kLetter)) return Run(i + 1, kLetter);
    if (Is(i, kLetter)) return Run(i, kLetter);
    if (Is(i, kNumber)) return i + 1;
    size_t symbols = i + (chars_[i] == ' ' ? 1 : 0);
    if (IsSymbol(symbols)) {
      while (IsSymbol(symbols)) ++symbols;
      return Run(symbols, kNewline);
    }
    const size_t run = Run(i, kSpace);
    for (size_t end = run; end > i; --end) {
      if (Is(end - 1, kNewline)) return end;  // \s*[\r\n]+
    }
    for (size_t end = run; end > i; --end) {
      if (end == chars_.size() || Is(end, kSpace)) return end;  // \s+(?!\S)
    }
    return run;  // \s+
  }

  std::vector<char32_t> chars_;
};

TEST(PreTokenizerTest, SplitsWordsNumbersSymbolsAndBlanks) {
  EXPECT_THAT(Words("Hello, world!"), ElementsAre("Hello", ",", " world", "!"));
  EXPECT_THAT(Words("a12 b"), ElementsAre("a", "1", "2", " b"));
  EXPECT_THAT(Words("a   b"), ElementsAre("a", "  ", " b"));
  EXPECT_THAT(Words("a   1"), ElementsAre("a", "  ", " ", "1"));
  EXPECT_THAT(Words("a  \n  b"), ElementsAre("a", "  \n", " ", " b"));
  EXPECT_THAT(Words("a \t"), ElementsAre("a", " \t"));
  EXPECT_THAT(Words("\tx\t.y"), ElementsAre("\tx", "\t", ".y"));
  EXPECT_THAT(Words(" .\n\n x"), ElementsAre(" .\n\n", " x"));
  EXPECT_THAT(Words("\u3000\u4f60"), ElementsAre("\u3000\u4f60"));
  EXPECT_THAT(Words("..a.a"), ElementsAre("..", "a", ".a"));
}

TEST(PreTokenizerTest, ContractionsIgnoreCase) {
  EXPECT_THAT(Words("it's IT'S"), ElementsAre("it", "'s", " IT", "'S"));
  EXPECT_THAT(Words("y'all'd've"), ElementsAre("y", "'all", "'d", "'ve"));
  EXPECT_THAT(Words("'LL'rE'ver"), ElementsAre("'LL", "'rE", "'ve", "r"));
  EXPECT_THAT(Words("'\u017fx"), ElementsAre("'\u017f", "x"));  // the long s
  EXPECT_THAT(Words("'sofa"), ElementsAre("'s", "ofa"));
  EXPECT_THAT(Words("'"), ElementsAre("'"));
  EXPECT_THAT(Words("'r"), ElementsAre("'r"));
}

TEST(PreTokenizerTest, AgreesWithThePatternOnRandomText) {
  std::mt19937 random(5);
  for (int i = 0; i < 20000; ++i) {
    const std::string text = RandomText(random, 30);
    ASSERT_EQ(Words(text), ReferenceSplitter(text).Split()) << "seed 5, text " << i;
  }
}

// Each of these makes a backtracking matcher start over at every character.
TEST(PreTokenizerTest, LongRunsAreFewWords) {
  constexpr size_t kLong = 10 << 20;
  EXPECT_EQ(Words(std::string(kLong, ' ')).size(), 1u);
  EXPECT_EQ(Words(std::string(kLong, ' ') + "x").size(), 2u);
  EXPECT_EQ(Words(std::string(kLong, '\n')).size(), 1u);
  EXPECT_EQ(Words("\n" + std::string(kLong, '\t') + "1").size(), 4u);
  EXPECT_EQ(Words(std::string(kLong, 'x')).size(), 1u);
  EXPECT_EQ(Words(std::string(kLong, '.')).size(), 1u);
}

}  // namespace
}  // namespace asynctls
