// SPDX-License-Identifier: Apache-2.0
// `asynctls bench` as a whole: exit codes, JSON, reports, comparison.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "client/bench/compare.h"
#include "client/commands.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class RunBenchTest : public ::testing::Test {
 protected:
  // Exit code and stdout.
  std::pair<int, std::string> Run(std::vector<std::string> args) {
    ::testing::internal::CaptureStdout();
    const int code = RunBench(args);
    std::fflush(stdout);
    return {code, ::testing::internal::GetCapturedStdout()};
  }
  std::vector<std::string> Args(std::vector<std::string> more) {
    std::vector<std::string> args = {
        absl::StrCat("--target=127.0.0.1:", server_.server().grpc_port()),
        "--concurrency=8",
        "--num-requests=50",
        "--prompt-tokens=4:20",
        "--max-tokens=8",
        "--seed=2"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  std::string File(const std::string& name) { return ::testing::TempDir() + "/run_bench_" + name; }

  TestServer server_;
};

TEST_F(RunBenchTest, PrintsJsonOfTheDocumentedShape) {
  const auto [code, out] = Run(Args({"--json",
                                     "--cancel-fraction=0.2",
                                     "--malformed-fraction=0.2",
                                     "--warmup=1",
                                     "--goodput=ttft:60000"}));
  EXPECT_EQ(code, kExitOk);
  const auto json = ParseJson(out, "stdout");
  ASSERT_TRUE(json.ok()) << json.status() << out;
  EXPECT_TRUE(CheckReport(*json, "stdout").ok());
  EXPECT_EQ((*json)["model"]["name"], "fake");
  EXPECT_EQ((*json)["flags"]["seed"], "2");
  EXPECT_GT((*json)["machine"]["cores"], 0);
  EXPECT_EQ((*json)["unexpected"], 0);
  uint64_t requests = 0;
  for (const Json& row : (*json)["outcomes"]) requests += row["requests"].get<uint64_t>();
  EXPECT_EQ(requests, 50u);
  EXPECT_EQ((*json)["throughput"]["requests"], 50);
  EXPECT_DOUBLE_EQ((*json)["goodput"]["fraction"], 1);
}

TEST_F(RunBenchTest, WritesReportsAndComparesThem) {
  std::vector<std::string> files;
  for (const char* name : {"a", "b"}) {
    const std::string html = File(std::string(name) + ".html");
    const auto [code, out] = Run(Args({"--json", "--report", html}));
    EXPECT_EQ(code, kExitOk);
    EXPECT_THAT(*ReadFile(html), HasSubstr("<svg"));
    EXPECT_THAT(*ReadFile(html), Not(HasSubstr("http:")));
    files.push_back(File(std::string(name) + ".json"));
    std::ofstream(files.back()) << out;
  }
  const std::string html = File("compared.html");
  const auto [code, out] = Run({"--compare", files[0], files[1], "--report", html});
  EXPECT_EQ(code, kExitOk);
  EXPECT_THAT(out, HasSubstr("B / A"));
  EXPECT_THAT(*ReadFile(html), HasSubstr("A and B"));
}

TEST_F(RunBenchTest, PrintsTablesWithoutJson) {
  const auto [code, out] = Run(Args({}));
  EXPECT_EQ(code, kExitOk);
  EXPECT_THAT(out, HasSubstr("TTFT"));
  EXPECT_THAT(out, HasSubstr("output tokens"));
}

TEST_F(RunBenchTest, FailsWhenAWellFormedRequestFails) {
  // Prompts beyond the context are refused, and that was not asked for.
  const auto [code, out] = Run({absl::StrCat("--target=127.0.0.1:", server_.server().grpc_port()),
                                "--concurrency=1",
                                "--num-requests=2",
                                "--prompt-tokens=200000",
                                "--json"});
  EXPECT_EQ(code, kExitFailed);
  EXPECT_EQ((*ParseJson(out, "stdout"))["failed"], 2);
  EXPECT_EQ(Run({"--target=127.0.0.1:1", "--concurrency=1", "--num-requests=1"}).first,
            kExitFailed);
}

TEST_F(RunBenchTest, BadUsageIsCodeTwo) {
  const std::string text = File("no.json");
  std::ofstream(text) << "{}";
  EXPECT_EQ(Run({"--target=h:1"}).first, kExitUsage);
  EXPECT_EQ(Run(Args({"--report=/nowhere/f.html"})).first, kExitUsage);
  EXPECT_EQ(Run({"--compare", text}).first, kExitUsage);
  EXPECT_EQ(Run({"--compare", text, text}).first, kExitUsage);
  EXPECT_EQ(Run({"--compare", "/nowhere/a", text}).first, kExitUsage);
  EXPECT_EQ(Run({"--compare", text, text, "--json"}).first, kExitUsage);
}

}  // namespace
}  // namespace asynctls::testing
