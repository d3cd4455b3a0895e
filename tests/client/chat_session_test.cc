// SPDX-License-Identifier: Apache-2.0
#include "client/chat_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace asynctls {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Action = ChatSession::Action;

// "role: content" of every message that would be sent.
std::vector<std::string> Messages(const ChatSession& session) {
  std::vector<std::string> out;
  const v1::GenerateRequest request = session.Request();
  for (const v1::ChatMessage& message : request.chat().messages()) {
    out.push_back(message.role() + ": " + message.content());
  }
  return out;
}

TEST(ChatSessionTest, KeepsTheConversation) {
  ChatSession session;
  EXPECT_EQ(session.Handle("  ").action, Action::kNothing);
  EXPECT_EQ(session.Handle("one").action, Action::kAsk);
  session.EndReply("1");
  EXPECT_EQ(session.Handle("/system be brief").action, Action::kNothing);
  EXPECT_EQ(session.Handle("//two").action, Action::kAsk);
  EXPECT_THAT(Messages(session),
              ElementsAre("system: be brief", "user: one", "assistant: 1", "user: /two"));
  session.EndReply("2");
  EXPECT_TRUE(session.Handle("/clear").error.ok());
  EXPECT_THAT(Messages(session), ElementsAre("system: be brief"));
  EXPECT_TRUE(session.Handle("/system").error.ok());
  EXPECT_TRUE(Messages(session).empty());
}

TEST(ChatSessionTest, RetryAsksTheLastQuestionAgain) {
  ChatSession session;
  EXPECT_THAT(std::string(session.Handle("/retry").error.message()), HasSubstr("no question"));
  session.Handle("q");
  session.EndReply("a");
  EXPECT_EQ(session.Handle("/retry").action, Action::kAsk);
  EXPECT_THAT(Messages(session), ElementsAre("user: q"));
  session.EndReply("");  // it failed: taken back
  EXPECT_TRUE(Messages(session).empty());
  EXPECT_EQ(session.Handle("/retry").action, Action::kAsk);
  EXPECT_THAT(Messages(session), ElementsAre("user: q"));
}

TEST(ChatSessionTest, SettingsReachTheRequest) {
  ChatSession session;
  for (const char* line : {"/mode lagged",
                           "/budget 256",
                           "/set temperature 0.7",
                           "/set top-k 5",
                           "/thinking off",
                           "/set ignore-eos"}) {
    EXPECT_TRUE(session.Handle(line).error.ok()) << line;
  }
  v1::GenerateRequest request = session.Request();
  EXPECT_EQ(request.sparse().mode(), v1::ATTENTION_MODE_LAGGED);
  EXPECT_EQ(request.sparse().budget(), 256u);
  EXPECT_FLOAT_EQ(request.sampling().temperature(), 0.7f);
  EXPECT_EQ(request.sampling().top_k(), 5);
  EXPECT_TRUE(request.stopping().ignore_eos());
  EXPECT_TRUE(request.chat().has_enable_thinking());
  EXPECT_FALSE(request.chat().enable_thinking());
  EXPECT_THAT(session.Handle("/set").output, HasSubstr("budget: 256"));
  EXPECT_TRUE(session.Handle("/reset").error.ok());
  request = session.Request();
  EXPECT_FALSE(request.has_sampling());
  EXPECT_FALSE(request.chat().has_enable_thinking());
  EXPECT_THAT(session.Handle("/set").output, HasSubstr("nothing is set"));
}

TEST(ChatSessionTest, ErrorsNameTheCommandAndChangeNothing) {
  ChatSession session;
  for (const auto& [line, message] : std::vector<std::pair<std::string, std::string>>{
           {"/fly", "no command /fly"},
           {"/set speed 3", "no field 'speed'"},
           {"/set temperature warm", "temperature: 'warm'"},
           {"/set n 2", "'n' cannot be set in a chat"},
           {"/thinking", "/thinking: ''"},
           {"/stats maybe", "/stats: 'maybe'"},
           {"/mode fast", "mode: 'fast'"},
           {"/save", "/save needs a file"},
           {"/load /nowhere", "/nowhere"},
           {"/save /nowhere/f", "/nowhere/f"}}) {
    const ChatSession::Result result = session.Handle(line);
    EXPECT_EQ(result.action, Action::kNothing);
    EXPECT_THAT(std::string(result.error.message()), HasSubstr(message));
  }
  EXPECT_EQ(session.Request().ByteSizeLong(), ChatSession().Request().ByteSizeLong());
}

TEST(ChatSessionTest, SwitchesAndExit) {
  ChatSession session;
  EXPECT_FALSE(session.stats());
  session.Handle("/stats");
  EXPECT_TRUE(session.stats());
  session.Handle("/stats off");
  EXPECT_FALSE(session.stats());
  EXPECT_EQ(session.Handle("/exit").action, Action::kExit);
  for (const char* command : {"/system",
                              "/thinking",
                              "/mode",
                              "/budget",
                              "/set",
                              "/stats",
                              "/retry",
                              "/clear",
                              "/save",
                              "/load",
                              "/exit"}) {
    EXPECT_THAT(session.Handle("/help").output, HasSubstr(command));
  }
}

TEST(ChatSessionTest, SavedConversationsComeBack) {
  const std::string file = ::testing::TempDir() + "/chat_session_test.json";
  ChatSession session;
  session.SetSystem("s");
  session.Handle("q \"quoted\"");
  session.EndReply("a\nb");
  EXPECT_TRUE(session.Handle("/save " + file).error.ok());
  ChatSession other;
  other.Handle("forgotten");
  EXPECT_THAT(other.Handle("/load " + file).output, HasSubstr("2 messages"));
  EXPECT_EQ(Messages(other), Messages(session));
  std::ofstream(file) << "[]";
  EXPECT_FALSE(other.Handle("/load " + file).error.ok());
  EXPECT_EQ(Messages(other), Messages(session));
}

TEST(StatsLineTest, ShowsSpeedAndKvRead) {
  GenerateReply reply;
  reply.choices.resize(1);
  v1::Usage& usage = *reply.choices[0].finished.mutable_usage();
  usage.set_completion_tokens(11);
  usage.set_prompt_tokens(100);
  usage.set_cached_tokens(64);
  usage.mutable_kv_read()->set_bytes(1);
  usage.mutable_kv_read()->set_dense_bytes(8);
  reply.first_token = absl::Milliseconds(500);
  reply.total = absl::Milliseconds(2500);
  EXPECT_EQ(StatsLine(reply),
            "11 tokens at 5.0/s, first after 0.50 s; prompt 100 tokens (64 cached); read 12.5 % of "
            "the KV");
}

}  // namespace
}  // namespace asynctls
