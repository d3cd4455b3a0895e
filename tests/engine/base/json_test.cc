// SPDX-License-Identifier: Apache-2.0
#include "engine/base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls {
namespace {

using ::testing::HasSubstr;

TEST(ParseJsonTest, ReadsNestedValues) {
  auto json = ParseJson(R"({"a": [1, -2, 3.5], "b": {"c": "\u00e9"}})", "x.json");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["a"][1], -2);
  EXPECT_EQ((*json)["b"]["c"], "\xc3\xa9");
}

TEST(ParseJsonTest, NamesFileAndByteOfASyntaxError) {
  auto json = ParseJson(R"({"a": )", "x.json");
  EXPECT_EQ(json.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(json.status().message(), HasSubstr("x.json: not valid JSON: byte 7"));
}

TEST(ParseJsonTest, RefusesDuplicateKeysAtAnyDepth) {
  auto json = ParseJson(R"({"a": {"k": 1, "k": 2}})", "x.json");
  EXPECT_THAT(json.status().message(), HasSubstr("duplicate key 'k'"));
  EXPECT_TRUE(ParseJson(R"({"a": {"k": 1}, "b": {"k": 2}})", "x.json").ok());
}

TEST(ParseJsonTest, RefusesNonFiniteNumbersAndTrailingText) {
  EXPECT_FALSE(ParseJson("1e999", "x").ok());
  EXPECT_FALSE(ParseJson("NaN", "x").ok());
  EXPECT_FALSE(ParseJson("{} {}", "x").ok());
}

TEST(ParseJsonTest, BoundsTheDepth) {
  EXPECT_FALSE(ParseJson(std::string(100'000, '['), "x").ok());
  EXPECT_TRUE(ParseJson(std::string(64, '[') + std::string(64, ']'), "x").ok());
}

TEST(ParseJsonTest, RefusesInvalidUtf8) { EXPECT_FALSE(ParseJson("\"\xff\"", "x").ok()); }

TEST(ReadFileTest, NamesTheFileThatIsMissingOrTooLarge) {
  EXPECT_EQ(ReadFile("/nonexistent/f").status().code(), absl::StatusCode::kNotFound);
  auto file = ReadFile(ASYNCTLS_SOURCE_DIR "/LICENSE", 10);
  EXPECT_THAT(file.status().message(), HasSubstr("over the limit of 10"));
}

}  // namespace
}  // namespace asynctls
