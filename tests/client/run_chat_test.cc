// SPDX-License-Identifier: Apache-2.0
// `asynctls chat` scripted through a pipe: what it prints, sends and remembers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdio_ext.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "client/commands.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class RunChatTest : public ::testing::Test {
 protected:
  static TestServer::Options Options() {
    TestServer::Options options = TestServer::Defaults();
    options.fake.step_time = absl::Milliseconds(1);
    return options;
  }
  // Exit code and stdout of a chat whose stdin is `script`.
  std::pair<int, std::string> Chat(const std::string& script, std::vector<std::string> args = {}) {
    args.insert(args.begin(),
                {absl::StrCat("--target=127.0.0.1:", server_.server().grpc_port()),
                 "--temperature=0",
                 "--max-tokens=6"});
    const int old = dup(STDIN_FILENO);
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    EXPECT_EQ(write(ends[1], script.data(), script.size()), static_cast<ssize_t>(script.size()));
    close(ends[1]);
    dup2(ends[0], STDIN_FILENO);
    std::clearerr(stdin);
    __fpurge(stdin);  // what an earlier chat left unread
    ::testing::internal::CaptureStdout();
    const int code = RunChat(args);
    std::fflush(stdout);
    dup2(old, STDIN_FILENO);
    close(ends[0]);
    close(old);
    return {code, ::testing::internal::GetCapturedStdout()};
  }
  // The fake model's answer to a conversation.
  std::string Answer(const std::vector<std::pair<std::string, std::string>>& messages) {
    v1::GenerateRequest request;
    for (const auto& [role, content] : messages) {
      v1::ChatMessage& message = *request.mutable_chat()->add_messages();
      message.set_role(role);
      message.set_content(content);
    }
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(6);
    return server_.Generate(request).text;
  }

  TestServer server_{Options()};
};

TEST_F(RunChatTest, RemembersTheConversation) {
  const std::string first = Answer({{"user", "one"}});
  const std::string second =
      Answer({{"user", "one"}, {"assistant", first}, {"user", "two\nthree"}});
  const auto [code, out] = Chat("one\ntwo\\\nthree\n");
  EXPECT_EQ(code, kExitOk);
  EXPECT_EQ(out, first + "\n" + second + "\n");
}

TEST_F(RunChatTest, CommandsActBetweenMessages) {
  const std::string answer = Answer({{"system", "s"}, {"user", "q"}});
  const auto [code, out] = Chat("/system s\n/stats\nq\n/retry\n/exit\nnot sent\n");
  EXPECT_EQ(code, kExitOk);
  EXPECT_THAT(out, HasSubstr("stats are on\n" + answer + "\n[6 tokens at "));
  EXPECT_THAT(out, HasSubstr("of the KV]\n" + answer + "\n[6 tokens at "));
  EXPECT_EQ(Chat("q\n", {"--system=s"}).second, answer + "\n");
}

TEST_F(RunChatTest, GoesOnAfterAnErrorAndSaysSoAtTheEnd) {
  const std::string answer = Answer({{"user", "q"}});
  const auto [code, out] = Chat(
      "/budget 1\nrefused\n/reset\n/set temperature 0\n"
      "/set max-tokens 6\nq\n");
  EXPECT_EQ(code, kExitFailed);
  EXPECT_EQ(out, answer + "\n");  // the refused question is not part of the conversation
  EXPECT_EQ(Chat("/fly\n").first, kExitFailed);
}

TEST_F(RunChatTest, CtrlCEndsTheReplyAndNotTheProgram) {
  std::thread user([&] {
    ASSERT_TRUE(server_.WaitFor([](const Engine::Snapshot& s) { return s.running == 1; }));
    std::raise(SIGINT);
  });
  const auto [code, out] = Chat("/set max-tokens 50000\nlong\n/set max-tokens 6\nshort\n");
  user.join();
  EXPECT_EQ(code, kExitOk);
  EXPECT_TRUE(server_.WaitIdle());
  EXPECT_GT(server_.metrics().requests_started.Value(), 1);
  EXPECT_FALSE(out.empty());
}

TEST_F(RunChatTest, BadUsageIsCodeTwo) {
  EXPECT_EQ(RunChat({}), kExitUsage);
  EXPECT_EQ(Chat("", {"--thinking=maybe"}).first, kExitUsage);
  EXPECT_EQ(Chat("", {"--load=/nowhere"}).first, kExitUsage);
  EXPECT_EQ(Chat("", {"--mode=fast"}).first, kExitUsage);
  EXPECT_EQ(Chat("", {"--n=2"}).first, kExitUsage);
}

}  // namespace
}  // namespace asynctls::testing
