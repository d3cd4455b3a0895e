// SPDX-License-Identifier: Apache-2.0
// The subcommands against a server: exit codes and what they print.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "client/commands.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;

class CommandTest : public ::testing::Test {
 protected:
  std::string Target() { return absl::StrCat("127.0.0.1:", server_.server().grpc_port()); }

  // What `run` prints to stdout.
  template <class Run>
  std::string Capture(Run run) {
    ::testing::internal::CaptureStdout();
    run();
    std::fflush(stdout);
    return ::testing::internal::GetCapturedStdout();
  }

  // A data file whose expected answers are FakeWorker's for every second sample.
  std::string Data() {
    const std::string path = ::testing::TempDir() + "/run_eval_test.jsonl";
    std::ofstream file(path);
    for (int i = 0; i < 4; ++i) {
      v1::GenerateRequest request;
      v1::ChatMessage& message = *request.mutable_chat()->add_messages();
      message.set_role("user");
      message.set_content(absl::StrCat("question ", i));
      request.mutable_sampling()->set_temperature(0);
      request.mutable_stopping()->set_max_tokens(6);
      const std::string right = server_.Generate(request).text;
      const Json line = {{"id", absl::StrCat(i)},
                         {"task", i < 2 ? "a" : "b"},
                         {"length", 64},
                         {"messages", {{{"role", "user"}, {"content", message.content()}}}},
                         {"expected", i % 2 == 0 ? right : "wrong"}};
      file << line.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
    }
    return path;
  }

  TestServer server_;
};

TEST_F(CommandTest, EvalScoresEveryMode) {
  const std::string data = Data();
  int code = -1;
  const std::string out = Capture([&] {
    code = RunEval({"--target",
                    Target(),
                    "--data",
                    data,
                    "--modes",
                    "dense,exact@256/8,level1@512",
                    "--max-tokens=6",
                    "--concurrency=2",
                    "--json"});
  });
  EXPECT_EQ(code, kExitOk);
  const auto json = ParseJson(out, "stdout");
  ASSERT_TRUE(json.ok()) << json.status() << out;
  const Json& results = (*json)["results"];
  ASSERT_EQ(results.size(), 3u);
  for (const Json& result : results) {
    EXPECT_EQ(result["samples"], 4);
    EXPECT_EQ(result["correct"], 2);
    EXPECT_EQ(result["failures"], 0);
    EXPECT_DOUBLE_EQ(result["by_task"]["a"], 0.5);
  }
  EXPECT_EQ(results[0]["budget"], 0);
  EXPECT_EQ(results[1]["budget"], 256);
  EXPECT_EQ(results[1]["blocks"], 8);
  EXPECT_EQ(results[2]["blocks"], 8);
  EXPECT_THAT(Capture([&] {
                RunEval({"--target", Target(), "--data", data, "--modes=dense", "--max-tokens=6"});
              }),
              HasSubstr("50.00%"));
}

TEST_F(CommandTest, EvalFailsOnlyWhereAllRequestsFail) {
  const std::string data = Data();
  int some = -1, all = -1;
  Capture([&] {
    some = RunEval({"--target", Target(), "--data", data, "--modes=dense,bound@1024", "--json"});
    all = RunEval({"--target", Target(), "--data", data, "--modes=bound@1024", "--json"});
  });
  EXPECT_EQ(some, kExitOk);
  EXPECT_EQ(all, kExitFailed);
  EXPECT_EQ(RunEval({"--target", Target(), "--data", "/nowhere"}), kExitUsage);
  EXPECT_EQ(RunEval({"--target", Target()}), kExitUsage);
}

TEST_F(CommandTest, GenerateStreamsTextOrPrintsJson) {
  const std::vector<std::string> args = {
      "--target", Target(), "--prompt", "Hello", "--max-tokens=9", "--temperature=0"};
  int code = -1;
  const std::string text = Capture([&] { code = RunGenerate(args); });
  EXPECT_EQ(code, kExitOk);
  std::vector<std::string> with_json = args;
  with_json.push_back("--json");
  const auto json = ParseJson(Capture([&] { RunGenerate(with_json); }), "stdout");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["text"].get<std::string>() + "\n", text);
  EXPECT_EQ((*json)["completion_tokens"], 9);
  EXPECT_EQ((*json)["finish_reason"], "length");
  EXPECT_EQ((*json)["mode"], "exact");
}

TEST_F(CommandTest, GenerateSaysWhatWentWrong) {
  EXPECT_EQ(RunGenerate({"--prompt=x"}), kExitUsage);
  EXPECT_EQ(RunGenerate({"--target=127.0.0.1:1", "--prompt=x"}), kExitFailed);
  EXPECT_EQ(RunGenerate({"--target", Target(), "--prompt=x", "--budget=1"}), kExitFailed);
}

}  // namespace
}  // namespace asynctls::testing
