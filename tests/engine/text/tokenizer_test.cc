// SPDX-License-Identifier: Apache-2.0
#include "engine/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "engine/base/json.h"
#include "tests/engine/text/text_testing.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Tokenizer& Demo() { return DemoTokenizer(); }

TEST(TokenizerTest, EncodesEveryGoldenLineExactly) {
  const std::vector<Json> lines = ReadJsonLines("tests/golden/tokenizer/encode.jsonl");
  ASSERT_EQ(lines.size(), 380u);
  for (const Json& line : lines) {
    const std::string text = line["text"].get<std::string>();
    const auto want = line["ids"].get<std::vector<uint32_t>>();
    const auto ids = Demo().Encode(text, true);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, want) << line["text"].dump();
    const std::string decoded = line.value("decoded", text);
    EXPECT_EQ(Demo().Decode(want, false).value(), decoded);
  }
}

TEST(TokenizerTest, KnowsItsVocabulary) {
  EXPECT_EQ(Demo().vocab_size(), 2048u);
  EXPECT_EQ(Demo().IdOf("<|im_end|>"), 2045u);
  EXPECT_EQ(Demo().IdOf("!"), 0u);
  EXPECT_EQ(Demo().IdOf("no such token"), std::nullopt);
  EXPECT_TRUE(Demo().IsSpecial(2045));
  EXPECT_FALSE(Demo().IsSpecial(2046));  // <think>: added, not special
  EXPECT_FALSE(Demo().IsSpecial(0));
  EXPECT_FALSE(Demo().IsSpecial(2048));
  EXPECT_EQ(Demo().BytesOf(220), " ");
  EXPECT_EQ(Demo().BytesOf(2048), "");
}

TEST(TokenizerTest, SpecialTokensInTextAreParsedOnlyIfAsked) {
  const std::string text = "a<|im_end|>b<think>c";
  EXPECT_THAT(Demo().Encode(text, true).value(), ElementsAre(64, 2045, 65, 2046, 66));
  const auto plain = Demo().Encode(text, false).value();
  EXPECT_THAT(plain, testing::Not(testing::Contains(2045)));
  EXPECT_THAT(plain, testing::Contains(2046));
  EXPECT_EQ(Demo().Decode(plain, false).value(), text);
}

TEST(TokenizerTest, DecodeSkipsSpecialTokensIfAskedAndRefusesWhatIsNoToken) {
  EXPECT_EQ(Demo().Decode({64, 2045, 2046, 65}, true).value(), "a<think>b");
  EXPECT_EQ(Demo().Decode({64, 2045, 65}, false).value(), "a<|im_end|>b");
  const auto text = Demo().Decode({64, 2048}, true);
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(text.status().message(), HasSubstr("ids[1] is 2048"));
  EXPECT_FALSE(Demo().Decode({4294967295u}, true).ok());
}

TEST(TokenizerTest, DecodeReplacesBrokenUtf8) {
  const auto euro = Demo().Encode("\u20ac", true).value();  // three single bytes
  ASSERT_EQ(euro.size(), 3u);
  EXPECT_EQ(Demo().Decode({euro[0], euro[1]}, true).value(), "\ufffd");
  EXPECT_EQ(Demo().Decode({euro[1], euro[0], 64}, true).value(), "\ufffd\ufffda");
}

TEST(TokenizerTest, RefusesInvalidUtf8NamingTheByte) {
  const auto ids = Demo().Encode("ab\xffz", true);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ids.status().message(), HasSubstr("byte 2"));
}

TEST(TokenizerTest, RoundTripsRandomUnicode) {
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    const std::string text = RandomText(random, 60);
    const auto ids = Demo().Encode(text, false);
    ASSERT_TRUE(ids.ok());
    ASSERT_EQ(Demo().Decode(*ids, false).value(), NormalizeNfc(text)) << "seed 7, text " << i;
  }
}

// The word cache must not be able to change a result: a fresh tokenizer and a used one agree.
TEST(TokenizerTest, ResultsDoNotDependOnWhatWasEncodedBefore) {
  std::mt19937 random(8);
  std::vector<std::string> texts;
  for (int i = 0; i < 3000; ++i) texts.push_back(RandomText(random, 30));
  std::vector<std::vector<uint32_t>> first;
  for (const std::string& text : texts) first.push_back(Demo().Encode(text, true).value());
  const auto fresh = Tokenizer::Load(DemoTokenizerPath()).value();
  for (size_t i = texts.size(); i-- > 0;) {
    ASSERT_EQ(fresh->Encode(texts[i], true).value(), first[i]);
  }
}

TEST(TokenizerTest, ManyThreadsEncodeAtOnce) {
  const std::vector<Json> lines = ReadJsonLines("tests/golden/tokenizer/encode.jsonl");
  std::vector<std::thread> threads;
  std::vector<int> wrong(8, 0);
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 5; ++round) {
        for (size_t i = 0; i < lines.size(); ++i) {
          const Json& line = lines[(i + t * 47) % lines.size()];
          const auto ids = Demo().Encode(line["text"].get<std::string>(), true);
          if (!ids.ok() || *ids != line["ids"].get<std::vector<uint32_t>>()) ++wrong[t];
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, testing::Each(0));
}

// Inputs on which a quadratic step anywhere would not come back within the test's time limit.
TEST(TokenizerTest, HostileInputTakesLinearTime) {
  const auto repeat = [](const std::string& unit, size_t bytes) {
    std::string text;
    while (text.size() < bytes) text += unit;
    return text;
  };
  constexpr size_t kMiB = 1 << 20;
  const std::string hostile[] = {std::string(10 * kMiB, ' '),
                                 std::string(kMiB, 'a'),
                                 repeat(" \n", kMiB),
                                 repeat("\t x", kMiB),
                                 repeat("'", kMiB),
                                 repeat("<", kMiB),
                                 repeat("<|im_start|", kMiB),
                                 repeat("\u4f60", kMiB / 2),
                                 repeat("\U0001f600", kMiB / 2),
                                 repeat("\u0323\u0301", kMiB / 4),
                                 repeat("\u1100\u1161", kMiB / 4)};
  for (const std::string& text : hostile) {
    const auto ids = Demo().Encode(text, true);
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(Demo().Decode(*ids, false).value(), NormalizeNfc(text));
  }
}

}  // namespace
}  // namespace asynctls
