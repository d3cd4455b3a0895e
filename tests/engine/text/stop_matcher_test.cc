// SPDX-License-Identifier: Apache-2.0
#include "engine/text/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

#include "engine/text/utf8.h"

namespace asynctls {
namespace {

TEST(StopMatcherTest, EmitsWhatComesBeforeTheStop) {
  StopMatcher matcher({"END", "\n\n"});
  EXPECT_EQ(matcher.Append("one E"), "one ");
  EXPECT_EQ(matcher.Append("N"), "");
  EXPECT_EQ(matcher.Append("X\n"), "ENX");
  EXPECT_FALSE(matcher.matched().has_value());
  EXPECT_EQ(matcher.Append("two\nEND more"), "\ntwo\n");
  EXPECT_EQ(matcher.matched(), "END");
  EXPECT_EQ(matcher.Append("after"), "");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcherTest, FlushGivesBackAnUnfinishedStop) {
  StopMatcher matcher({"</s>"});
  EXPECT_EQ(matcher.Append("a</s"), "a");
  EXPECT_EQ(matcher.Flush(), "</s");
  EXPECT_FALSE(matcher.matched().has_value());
}

TEST(StopMatcherTest, WithoutStopsEverythingPasses) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Append("abc"), "abc");
  EXPECT_EQ(matcher.Append(""), "");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcherTest, AnEmptyPieceKeepsWhatIsHeld) {
  StopMatcher matcher({"ab"});
  EXPECT_EQ(matcher.Append("xa"), "x");
  EXPECT_EQ(matcher.Append(""), "");
  EXPECT_EQ(matcher.Append("b"), "");
  EXPECT_EQ(matcher.matched(), "ab");
}

TEST(StopMatcherTest, TheFirstToEndWinsAndOfThoseTheLongest) {
  StopMatcher nested({"abcd", "bc"});
  EXPECT_EQ(nested.Append("xabcd"), "xa");
  EXPECT_EQ(nested.matched(), "bc");
  StopMatcher together({"b", "ab", "aab"});
  EXPECT_EQ(together.Append("aaab"), "a");
  EXPECT_EQ(together.matched(), "aab");
}

TEST(StopMatcherTest, WhatIsHeldBackBeginsAtACharacter) {
  StopMatcher matcher({"\u4f60\u597d", "\u597d!"});
  for (const char* piece : {"\u4f60", "\u4f60", "\u597d"}) {
    const std::string text = matcher.Append(piece);
    EXPECT_EQ(FirstInvalidUtf8(text), text.size());
  }
  EXPECT_EQ(matcher.matched(), "\u4f60\u597d");
}

// Random texts over two letters (the worst for border tables), cut at random: the output must be
// what a search of the whole text gives, and no more may be held back than must be.
TEST(StopMatcherTest, AgreesWithASearchOfTheWholeTextHoweverItIsCut) {
  std::mt19937 random(31);
  const auto word = [&](uint32_t most) {
    std::string text;
    for (uint32_t n = 1 + random() % most; n > 0; --n) text += "ab"[random() % 2];
    return text;
  };
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops(1 + random() % 3);
    for (std::string& stop : stops) stop = word(6);
    const std::string text = word(30);

    size_t end = 0;
    std::string want = text, matched;
    for (; end <= text.size() && matched.empty(); ++end) {
      for (const std::string& stop : stops) {
        const bool here =
            end >= stop.size() && text.compare(end - stop.size(), stop.size(), stop) == 0;
        if (here && stop.size() > matched.size()) matched = stop;
      }
      if (!matched.empty()) want = text.substr(0, end - matched.size());
    }

    StopMatcher matcher(stops);
    std::string out;
    for (size_t i = 0; i < text.size();) {
      const size_t length = 1 + random() % 4;
      out += matcher.Append(text.substr(i, length));
      i = std::min(text.size(), i + length);
      if (matcher.matched().has_value()) break;
      size_t held = 0;
      for (const std::string& stop : stops) {
        for (size_t n = 1; n < stop.size() && n <= i; ++n) {
          if (text.compare(i - n, n, stop, 0, n) == 0) held = std::max(held, n);
        }
      }
      ASSERT_EQ(out.size(), i - held) << text;
    }
    out += matcher.Flush();
    ASSERT_EQ(out, want) << text;
    ASSERT_EQ(matcher.matched().value_or(""), matched) << text;
  }
}

}  // namespace
}  // namespace asynctls
