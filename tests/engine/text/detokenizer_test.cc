// SPDX-License-Identifier: Apache-2.0
#include "engine/text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/engine/text/text_testing.h"

namespace asynctls {
namespace {

// All pieces in a row; each must be whole characters.
std::string Stream(const std::vector<uint32_t>& ids, bool skip_special) {
  Detokenizer detokenizer(DemoTokenizer(), skip_special);
  std::string text;
  for (uint32_t id : ids) {
    const std::string piece = detokenizer.Append(id);
    EXPECT_EQ(FirstInvalidUtf8(piece), piece.size());
    text += piece;
  }
  return text + detokenizer.Flush();
}

TEST(DetokenizerTest, StreamsTheGoldens) {
  for (const Json& line : ReadJsonLines("tests/golden/tokenizer/encode.jsonl")) {
    const std::string want = line.value("decoded", line["text"].get<std::string>());
    EXPECT_EQ(Stream(line["ids"].get<std::vector<uint32_t>>(), false), want);
  }
}

TEST(DetokenizerTest, RandomIdsStreamToWhatDecodeMakesOfThem) {
  std::mt19937 random(21);
  for (int i = 0; i < 20000; ++i) {
    std::vector<uint32_t> ids(random() % 12);
    // Half of them single bytes, which make broken UTF-8 of every kind.
    for (uint32_t& id : ids) id = random() % (random() % 2 ? 256 : 2048);
    for (bool skip : {false, true}) {
      ASSERT_EQ(Stream(ids, skip), DemoTokenizer().Decode(ids, skip).value());
    }
  }
}

TEST(DetokenizerTest, HoldsBackAnUnfinishedCharacterOnly) {
  const auto ids = DemoTokenizer().Encode("\U0001f600", true).value();
  ASSERT_EQ(ids.size(), 4u);
  Detokenizer detokenizer(DemoTokenizer(), true);
  EXPECT_EQ(detokenizer.Append(64), "a");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(detokenizer.Append(ids[i]), "");
  EXPECT_EQ(detokenizer.Append(ids[3]), "\U0001f600");
  EXPECT_EQ(detokenizer.Append(ids[0]), "");
  EXPECT_EQ(detokenizer.Append(64),
            "\ufffd"
            "a");
  EXPECT_EQ(detokenizer.Append(ids[0]), "");
  EXPECT_EQ(detokenizer.Flush(), "\ufffd");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(DetokenizerTest, SpecialTokensAreSkippedIfAskedAndUnknownIdsAddNothing) {
  EXPECT_EQ(Stream({64, 2045, 2046, 65}, true), "a<think>b");
  EXPECT_EQ(Stream({64, 2045, 2046, 65}, false), "a<|im_end|><think>b");
  EXPECT_EQ(Stream({64, 2048, 4294967295u, 65}, false), "ab");
}

}  // namespace
}  // namespace asynctls
