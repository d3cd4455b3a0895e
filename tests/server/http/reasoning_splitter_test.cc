// SPDX-License-Identifier: Apache-2.0
#include "server/http/reasoning_splitter.h"

#include <gtest/gtest.h>

#include <string>

namespace asynctls {
namespace {

using Parts = ReasoningSplitter::Parts;

// Fed in pieces of `size` bytes.
Parts Split(const std::string& text, size_t size) {
  ReasoningSplitter splitter;
  Parts all;
  const auto add = [&all](const Parts& more) {
    all.reasoning += more.reasoning;
    all.content += more.content;
  };
  for (size_t at = 0; at < text.size(); at += size) add(splitter.Append(text.substr(at, size)));
  add(splitter.Flush());
  return all;
}

struct Case {
  const char *text, *reasoning, *content;
};

TEST(ReasoningSplitterTest, SplitsWhateverThePieces) {
  const Case cases[] = {
      {"plain text", "", "plain text"},
      {"", "", ""},
      {"  \n", "", "  \n"},
      {"<think>\nwhy\n</think>\n\nbecause", "why\n", "because"},
      {"\n<think>why</think>because", "why", "because"},
      {"<think></think>x", "", "x"},
      {"<think>\n\n</think>\n\nx", "", "x"},
      {"<think>never ends", "never ends", ""},
      {"<think>ends in a tag </thi", "ends in a tag </thi", ""},
      {"<think>a < b </b> c</think>d", "a < b </b> c", "d"},
      {"<think>a</think>b<think>c</think>", "a", "b<think>c</think>"},
      {"<thinker>", "", "<thinker>"},
      {"<thin", "", "<thin"},
      {"no <think>x</think>", "", "no <think>x</think>"},
      {"<think>a</think>\n\n", "a", ""},
      {"<think>gr\xc3\xbc\xc3\x9f</think>\xe2\x82\xac", "gr\xc3\xbc\xc3\x9f", "\xe2\x82\xac"},
  };
  for (const Case& c : cases) {
    for (size_t size = 1; size <= 12; ++size) {
      const Parts parts = Split(c.text, size);
      EXPECT_EQ(parts.reasoning, c.reasoning) << c.text << " by " << size;
      EXPECT_EQ(parts.content, c.content) << c.text << " by " << size;
    }
  }
}

TEST(ReasoningSplitterTest, HoldsBackOnlyWhatMayBeATag) {
  ReasoningSplitter splitter;
  EXPECT_EQ(splitter.Append("<think>one ").reasoning, "one ");
  EXPECT_EQ(splitter.Append("two <").reasoning, "two ");
  EXPECT_EQ(splitter.Append("3").reasoning, "<3");
  const Parts last = splitter.Append("</think>four");
  EXPECT_EQ(last.reasoning, "");
  EXPECT_EQ(last.content, "four");
  EXPECT_EQ(splitter.Append("<five").content, "<five");
}

}  // namespace
}  // namespace asynctls
