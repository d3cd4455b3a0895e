// SPDX-License-Identifier: Apache-2.0
#include "engine/text/added_tokens.h"

#include <gtest/gtest.h>

namespace asynctls {
namespace {

std::string Found(const AddedTokenFinder& finder, const std::string& text) {
  std::string found;
  for (size_t from = 0;;) {
    const auto match = finder.Find(text, from);
    if (!match.has_value()) return found;
    found += std::to_string(match->id) + (match->special ? "!" : "") + "@" +
             std::to_string(match->begin) + "-" + std::to_string(match->end) + " ";
    from = match->end;
  }
}

TEST(AddedTokenFinderTest, FindsTheLeftmostAndOfThoseTheLongest) {
  const AddedTokenFinder finder({{1, "<a>", true}, {2, "<a>b", false}, {3, "a>bc", false}});
  EXPECT_EQ(Found(finder, "x<a>bc<a>"), "2@1-5 1!@6-9 ");
  EXPECT_EQ(Found(finder, "<<a>"), "1!@1-4 ");
  EXPECT_EQ(Found(finder, "<a"), "");
  EXPECT_EQ(Found(finder, ""), "");
  EXPECT_EQ(Found(finder, "a>bc"), "3@0-4 ");
}

TEST(AddedTokenFinderTest, TokensWithOneFirstByte) {
  const AddedTokenFinder finder({{1, "<|x|>", true}, {2, "<|y|>", true}, {3, "<", false}});
  EXPECT_EQ(Found(finder, "<|x|<|y|>"), "3@0-1 2!@4-9 ");
}

TEST(AddedTokenFinderTest, NoTokens) { EXPECT_EQ(Found(AddedTokenFinder({}), "<a>"), ""); }

TEST(AddedTokenFinderTest, OtherScripts) {
  const AddedTokenFinder finder({{1, "\u4f60", false}, {2, "\u4f60\u597d", false}});
  EXPECT_EQ(Found(finder, "\u597d\u4f60\u4f60\u597d"), "1@3-6 2@6-12 ");
}

}  // namespace
}  // namespace asynctls
