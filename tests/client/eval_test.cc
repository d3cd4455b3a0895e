// SPDX-License-Identifier: Apache-2.0
#include "client/eval.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace asynctls {
namespace {

using ::testing::HasSubstr;

TEST(ParseEvalModeTest, EveryName) {
  struct Case {
    std::string text;
    v1::AttentionMode mode;
    v1::Selector selector;
    uint32_t budget, blocks;
  };
  const v1::Selector unset = v1::SELECTOR_UNSPECIFIED;
  const std::vector<Case> cases = {
      {"dense", v1::ATTENTION_MODE_DENSE, unset, 0, 0},
      {"exact", v1::ATTENTION_MODE_EXACT, unset, 0, 0},
      {"exact@512", v1::ATTENTION_MODE_EXACT, unset, 512, 0},
      {"lagged@1024/48", v1::ATTENTION_MODE_LAGGED, unset, 1024, 48},
      {"bound@1024/64", v1::ATTENTION_MODE_EXACT, v1::SELECTOR_BOUND, 1024, 64},
      {"level1@1024", v1::ATTENTION_MODE_EXACT, unset, 1024, 16},
      {"level2@1024", v1::ATTENTION_MODE_EXACT, unset, 1024, 1u << 20},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.text);
    const auto mode = ParseEvalMode(c.text);
    ASSERT_TRUE(mode.ok()) << mode.status();
    EXPECT_EQ(mode->name, c.text);
    EXPECT_EQ(mode->sparse.mode(), c.mode);
    EXPECT_EQ(mode->sparse.selector(), c.selector);
    EXPECT_EQ(mode->sparse.budget(), c.budget);
    EXPECT_EQ(mode->sparse.blocks(), c.blocks);
    EXPECT_EQ(mode->sparse.has_budget(), c.budget != 0);
    EXPECT_EQ(mode->sparse.has_blocks(), c.blocks != 0);
  }
}

TEST(ParseEvalModeTest, RefusesWhatItCannotMean) {
  for (const char* text : {"",
                           "fast",
                           "exact@",
                           "exact@0",
                           "exact@x",
                           "exact@1024/",
                           "exact@1024/0",
                           "exact@1024/x",
                           "dense@1024",
                           "level1",
                           "level1@1024/4",
                           "level2"}) {
    EXPECT_EQ(ParseEvalMode(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

std::string WriteData(const std::string& text) {
  const std::string path = ::testing::TempDir() + "/eval_test.jsonl";
  std::ofstream(path) << text;
  return path;
}

constexpr char kLine[] =
    R"({"id":"a","task":"t","length":64,"messages":[{"role":"user","content":"q"}],"expected":"e"})";

TEST(ReadSamplesTest, ReadsLinesUpToTheLimit) {
  const std::string path = WriteData(std::string(kLine) + "\n\n" + kLine + "\n");
  const auto all = ReadSamples(path, 0);
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 2u);
  EXPECT_EQ((*all)[0].task, "t");
  EXPECT_EQ((*all)[0].length, 64u);
  EXPECT_EQ((*all)[0].chat.messages(0).content(), "q");
  EXPECT_EQ(ReadSamples(path, 1)->size(), 1u);
}

TEST(ReadSamplesTest, NamesFileAndLineOfAnError) {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"{", ":2: not valid JSON"},
      {"[]", ":2: no text 'id'"},
      {R"({"id":"a","task":"t","expected":"e","messages":[]})", ":2: no whole number 'length'"},
      {R"({"id":"a","task":"t","expected":"e","length":1})", ":2: messages must be a list"},
      {R"({"id":"a","task":"t","expected":"e","length":1,"messages":[{"role":"user"}]})",
       ":2: message 0 has no text 'content'"},
  };
  for (const auto& [line, message] : bad) {
    const auto samples = ReadSamples(WriteData(std::string(kLine) + "\n" + line), 0);
    EXPECT_EQ(samples.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(samples.status().message()), HasSubstr(message));
  }
  EXPECT_EQ(ReadSamples("/nowhere", 0).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(ReadSamples(WriteData("\n"), 0).ok());
}

TEST(IsCorrectTest, IgnoresBlanksAtTheEndsOnly) {
  EXPECT_TRUE(IsCorrect("  a b\n", "a b"));
  EXPECT_FALSE(IsCorrect("a  b", "a b"));
  EXPECT_FALSE(IsCorrect("a b.", "a b"));
}

TEST(ScoreTest, CountsByTaskAndLengthAndAddsUpReads) {
  EvalSample first;
  first.task = "x";
  first.length = 4096;
  EvalSample second = first;
  second.task = "y";
  v1::SparseParams sparse;
  sparse.set_budget(512);
  sparse.set_blocks(64);
  v1::Usage usage;
  usage.mutable_kv_read()->set_bytes(10);
  usage.mutable_kv_read()->set_dense_bytes(100);
  Score score;
  score.Add(first, true, sparse, usage);
  usage.mutable_kv_read()->set_bytes(50);
  score.Add(second, false, sparse, usage);
  score.AddFailure(second);

  EXPECT_EQ(score.samples(), 3u);
  EXPECT_EQ(score.failures(), 1u);
  EXPECT_DOUBLE_EQ(score.kv_read_fraction(), 0.3);
  const Json json = score.ToJson(*ParseEvalMode("exact@512"));
  EXPECT_EQ(json["mode"], "exact@512");
  EXPECT_EQ(json["budget"], 512);
  EXPECT_EQ(json["blocks"], 64);
  EXPECT_EQ(json["correct"], 1);
  EXPECT_EQ(json["samples"], 3);
  EXPECT_DOUBLE_EQ(json["by_task"]["x"], 1.0);
  EXPECT_DOUBLE_EQ(json["by_task"]["y"], 0.0);
  EXPECT_NEAR(json["by_length"]["4096"].get<double>(), 1.0 / 3, 1e-12);
  EXPECT_EQ(score.ToJson(*ParseEvalMode("dense"))["budget"], 0);
}

TEST(ScoreTest, ReadsEverythingWhereNothingWasDecoded) {
  EXPECT_DOUBLE_EQ(Score().kv_read_fraction(), 1.0);
}

}  // namespace
}  // namespace asynctls
