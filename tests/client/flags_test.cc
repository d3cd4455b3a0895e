// SPDX-License-Identifier: Apache-2.0
#include "client/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls {
namespace {

using ::testing::HasSubstr;

const std::vector<FlagSpec> kSpecs = {
    {"target", "HOST:PORT", "where"}, {"n", "N", "a number"}, {"json", "", "a switch"}};

TEST(FlagsTest, TakesBothSpellingsAndSwitches) {
  auto flags = Flags::Parse(kSpecs, {"--target", "a:1", "--n=3", "--json"});
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_EQ(flags->Text("target"), "a:1");
  EXPECT_EQ(*flags->Whole("n", 0, 1, 9), 3u);
  EXPECT_TRUE(flags->has("json"));
}

TEST(FlagsTest, KeepsEqualsSignsAndDashesInsideValues) {
  auto flags = Flags::Parse(kSpecs, {"--target=a=b", "--n", "--1"});
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_EQ(flags->Text("target"), "a=b");
  EXPECT_EQ(flags->Text("n"), "--1");
}

TEST(FlagsTest, FallsBackWhereAbsent) {
  auto flags = Flags::Parse(kSpecs, {});
  ASSERT_TRUE(flags.ok());
  EXPECT_EQ(flags->Text("target", "x"), "x");
  EXPECT_EQ(*flags->Whole("n", 7, 1, 9), 7u);
  EXPECT_DOUBLE_EQ(*flags->Real("n", 0.5), 0.5);
  EXPECT_THAT(std::string(flags->Require({"target"}).message()), HasSubstr("--target is required"));
}

TEST(FlagsTest, KeepsEveryValueOfAFlagThatRepeats) {
  const std::vector<FlagSpec> specs = {{"stop", "TEXT", "an end", true}};
  auto flags = Flags::Parse(specs, {"--stop=a", "--stop", "b"});
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_THAT(flags->All("stop"), ::testing::ElementsAre("a", "b"));
  EXPECT_EQ(flags->Text("stop"), "b");
  EXPECT_TRUE(Flags::Parse(specs, {})->All("stop").empty());
}

TEST(FlagsTest, BoundsNumbers) {
  auto flags = Flags::Parse({{"x", "X", "a number"}}, {"--x=1.5"});
  EXPECT_DOUBLE_EQ(*flags->Real("x", 0, 0, 2), 1.5);
  EXPECT_THAT(std::string(flags->Real("x", 0, 0, 1).status().message()),
              HasSubstr("--x: 1.5 is outside 0 to 1"));
  EXPECT_FALSE(Flags::Parse({{"x", "X", "a number"}}, {"--x=inf"})->Real("x", 0).ok());
}

TEST(FlagsTest, NamesWhatIsWrong) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> bad = {
      {{"stray"}, "unknown argument 'stray'"},
      {{"--nope"}, "unknown argument '--nope'"},
      {{"--"}, "unknown argument '--'"},
      {{"--n"}, "--n needs a value"},
      {{"--json=1"}, "--json takes no value"},
      {{"--n=1", "--n=2"}, "--n is given twice"},
  };
  for (const auto& [args, message] : bad) {
    const auto flags = Flags::Parse(kSpecs, args);
    EXPECT_EQ(flags.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(flags.status().message()), HasSubstr(message));
  }
  const auto flags = Flags::Parse(kSpecs, {"--n=12"});
  EXPECT_THAT(std::string(flags->Whole("n", 0, 1, 9).status().message()),
              HasSubstr("--n: '12' is not a whole number from 1 to 9"));
  EXPECT_FALSE(Flags::Parse(kSpecs, {"--n=1.5"})->Whole("n", 0, 1, 9).ok());
  EXPECT_FALSE(Flags::Parse(kSpecs, {"--n=x"})->Real("n", 0).ok());
}

TEST(FlagsTest, HelpListsEveryFlag) {
  const std::string help = Flags::Help(kSpecs);
  EXPECT_THAT(help, HasSubstr("--target HOST:PORT"));
  EXPECT_THAT(help, HasSubstr("a switch"));
}

}  // namespace
}  // namespace asynctls
