// SPDX-License-Identifier: Apache-2.0
// What the flags of `asynctls generate` put into the request.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "client/commands.h"

namespace asynctls {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<v1::GenerateRequest> Request(std::vector<std::string> args) {
  args.insert(args.begin(), "--target=h:1");
  const auto flags = Flags::Parse(GenerateFlags(), args);
  return flags.ok() ? GenerateRequestFrom(*flags) : flags.status();
}

TEST(GenerateRequestTest, CarriesEveryFlag) {
  const auto request = Request({"--prompt=Hello",
                                "--mode=lagged",
                                "--selector=bound",
                                "--budget=256",
                                "--blocks=8",
                                "--tail=64",
                                "--max-tokens=5",
                                "--temperature=0",
                                "--seed=18446744073709551615",
                                "--n=2",
                                "--logprobs=3",
                                "--prompt-logprobs=0",
                                "--json"});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->text(), "Hello");
  EXPECT_EQ(request->sparse().mode(), v1::ATTENTION_MODE_LAGGED);
  EXPECT_EQ(request->sparse().selector(), v1::SELECTOR_BOUND);
  EXPECT_EQ(request->sparse().budget(), 256u);
  EXPECT_EQ(request->sparse().blocks(), 8u);
  EXPECT_EQ(request->sparse().tail(), 64u);
  EXPECT_EQ(request->stopping().max_tokens(), 5u);
  EXPECT_TRUE(request->sampling().has_temperature());  // 0 means greedy, not absent
  EXPECT_EQ(request->sampling().seed(), UINT64_MAX);
  EXPECT_EQ(request->sampling().n(), 2u);
  EXPECT_EQ(request->response().top_log_probs(), 3u);
  EXPECT_TRUE(request->response().has_prompt_log_probs());
}

TEST(GenerateRequestTest, LeavesOutWhatIsNotGiven) {
  const auto request = Request({"--prompt=Hello"});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_FALSE(request->sampling().has_temperature());
  EXPECT_FALSE(request->sampling().has_seed());
  EXPECT_FALSE(request->stopping().has_max_tokens());
  EXPECT_FALSE(request->sparse().has_budget());
}

TEST(GenerateRequestTest, ReadsPromptsAndMessagesFromFiles) {
  const std::string path = ::testing::TempDir() + "/generate_test.txt";
  std::ofstream(path) << "from a file";
  EXPECT_EQ(Request({"--prompt-file", path})->text(), "from a file");
  const auto chat = Request({"--prompt-file", path, "--chat"});
  EXPECT_EQ(chat->chat().messages(0).role(), "user");
  EXPECT_EQ(chat->chat().messages(0).content(), "from a file");
  EXPECT_FALSE(chat->chat().has_enable_thinking());
  const auto quick = Request({"--prompt-file", path, "--chat", "--thinking=off"});
  EXPECT_TRUE(quick->chat().has_enable_thinking());
  EXPECT_FALSE(quick->chat().enable_thinking());

  const std::string list = R"([{"role": "system", "content": "s"}])";
  for (const std::string& text : {list, R"({"messages": )" + list + "}"}) {
    std::ofstream(path) << text;
    const auto request = Request({"--messages", path});
    ASSERT_TRUE(request.ok()) << request.status();
    EXPECT_EQ(request->chat().messages(0).role(), "system");
  }
}

TEST(GenerateRequestTest, NamesTheFlagThatIsWrong) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> bad = {
      {{}, "exactly one of --prompt"},
      {{"--prompt=a", "--prompt-file=b"}, "exactly one of --prompt"},
      {{"--prompt-file=/nowhere"}, "/nowhere"},
      {{"--prompt=a", "--mode=fast"}, "--mode: 'fast'"},
      {{"--prompt=a", "--mode=unspecified"}, "--mode: 'unspecified'"},
      {{"--prompt=a", "--selector=x"}, "--selector: 'x'"},
      {{"--prompt=a", "--budget=-1"}, "--budget: '-1'"},
      {{"--prompt=a", "--max-tokens=x"}, "--max-tokens: 'x'"},
      {{"--prompt=a", "--thinking=on"}, "--thinking is on or off"},
      {{"--prompt=a", "--chat", "--thinking=maybe"}, "--thinking is on or off"},
      {{"--prompt=a", "--logprobs=1"}, "need --json"},
      {{"--prompt=a", "--temperature=warm"}, "--temperature: 'warm'"},
      {{"--prompt=a", "--seed=x"}, "--seed: 'x'"},
  };
  for (const auto& [args, message] : bad) {
    const auto request = Request(args);
    ASSERT_FALSE(request.ok()) << message;
    EXPECT_THAT(std::string(request.status().message()), HasSubstr(message));
  }
}

}  // namespace
}  // namespace asynctls
