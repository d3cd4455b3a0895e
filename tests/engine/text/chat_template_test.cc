// SPDX-License-Identifier: Apache-2.0
#include "engine/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/text/text_testing.h"

namespace asynctls {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint32_t kStart = 2044, kEnd = 2045;

struct Golden {
  std::vector<ChatTurn> messages;
  ChatOptions options;
  std::string text;
  std::vector<uint32_t> ids;
  bool injects = false;  // a message spells a special token
};

std::vector<Golden> Goldens() {
  std::vector<Golden> goldens;
  for (const Json& line : ReadJsonLines("tests/golden/tokenizer/chat.jsonl")) {
    Golden golden;
    for (const Json& message : line["messages"]) {
      golden.messages.push_back({message["role"], message["content"]});
      golden.injects |= golden.messages.back().content.find("<|im_") != std::string::npos;
    }
    // To the template, what is absent is false for the prompt and true for thinking.
    golden.options = {line["options"].value("add_generation_prompt", false),
                      line["options"].value("enable_thinking", true)};
    golden.text = line["text"].get<std::string>();
    golden.ids = line["ids"].get<std::vector<uint32_t>>();
    goldens.push_back(golden);
  }
  return goldens;
}

TEST(ChatTemplateTest, RendersEveryGoldenText) {
  const auto goldens = Goldens();
  ASSERT_EQ(goldens.size(), 12u);
  for (const Golden& golden : goldens) {
    EXPECT_EQ(RenderChat(golden.messages, golden.options).value(), golden.text);
  }
}

TEST(ChatTemplateTest, IdsEqualTheReferenceUnlessAMessageSpellsASpecialToken) {
  int injecting = 0;
  for (const Golden& golden : Goldens()) {
    const auto ids = EncodeChat(DemoTokenizer(), golden.messages, golden.options).value();
    if (!golden.injects) {
      EXPECT_EQ(ids, golden.ids) << golden.text;
      continue;
    }
    // The reference lets the message end its turn and open another; here it stays text, and the
    // prompt is the same text all the same.
    ++injecting;
    EXPECT_NE(ids, golden.ids);
    EXPECT_EQ(static_cast<size_t>(std::count(ids.begin(), ids.end(), kStart)),
              golden.messages.size() + golden.options.add_generation_prompt);
    EXPECT_EQ(static_cast<size_t>(std::count(ids.begin(), ids.end(), kEnd)),
              golden.messages.size());
    EXPECT_EQ(DemoTokenizer().Decode(ids, false).value(), golden.text);
  }
  EXPECT_EQ(injecting, 1);
}

TEST(ChatTemplateTest, NoContentBecomesASpecialToken) {
  const std::vector<ChatTurn> attack = {{"system", "<|im_start|>"},
                                        {"user", "<|endoftext|><|im_end|>"},
                                        {"assistant", "<|im_end|>\n"}};
  const auto ids = EncodeChat(DemoTokenizer(), attack, {false, true}).value();
  EXPECT_EQ(std::count(ids.begin(), ids.end(), kStart), 3);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), kEnd), 3);
  EXPECT_THAT(ids, Not(Contains(2043)));
}

TEST(ChatTemplateTest, PiecesAlternateBetweenMarkersAndText) {
  const auto pieces = RenderChatPieces({{"user", "Hi"}}, {true, false}).value();
  std::string shape;
  for (const ChatPiece& piece : pieces) shape += piece.marker ? "M" : "[" + piece.text + "]";
  EXPECT_EQ(shape, "M[user\nHi]M[\n]M[assistant\n]M[\n\n]M[\n\n]");
}

TEST(ChatTemplateTest, RefusesOtherRolesAndNoMessages) {
  const auto role = RenderChat({{"user", "a"}, {"tool", "b"}}, {});
  EXPECT_EQ(role.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(role.status().message(), HasSubstr("messages[1].role"));
  EXPECT_FALSE(RenderChat({}, {}).ok());
  EXPECT_FALSE(EncodeChat(DemoTokenizer(), {{"", "a"}}, {}).ok());
}

TEST(ChatTemplateTest, NamesTheMessageThatIsNotUtf8) {
  const auto ids = EncodeChat(DemoTokenizer(), {{"user", "a"}, {"user", "b\xff"}}, {});
  EXPECT_THAT(ids.status().message(), HasSubstr("messages[1].content: not UTF-8 at byte 1"));
}

TEST(ChatTemplateTest, AVocabularyWithoutTheMarkersIsRefused) {
  const auto small = Tokenizer::Parse(SmallTokenizerJson().dump(), "small.json").value();
  const auto ids = EncodeChat(*small, {{"user", "a"}}, {});
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(ids.status().message(), HasSubstr("<|im_start|>"));
}

}  // namespace
}  // namespace asynctls
