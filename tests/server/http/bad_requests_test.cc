// SPDX-License-Identifier: Apache-2.0
// Bad input over HTTP: what OpenAI's API can be asked in the wrong way, each by name with its
// status and the member that is named. What is odd but allowed is here too. Bytes that are no HTTP
// are in http_session_test.cc.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/testing/http_client.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

constexpr char kChat[] = "/v1/chat/completions";
constexpr char kCompletions[] = "/v1/completions";

TestServer::Options HttpOptions() {
  TestServer::Options options = TestServer::Defaults();
  options.config.set_http_listen("127.0.0.1:0");
  options.model.add_eos_token_ids(2);
  return options;
}

struct Case {
  const char* name;
  int status;
  const char* param;  // null where it is no member's fault
  std::function<void(Json& body)> spoil;
  const char* path = kCompletions;
};

// One server for all cases: none may harm the next.
TestServer& Server() {
  static auto* server = new TestServer(HttpOptions());
  return *server;
}

class BadRequestTest : public ::testing::TestWithParam<Case> {};

TEST_P(BadRequestTest, HasItsStatusAndHarmsNobody) {
  const Case& c = GetParam();
  Json body = {{"max_tokens", 4}, {"temperature", 0}};
  if (c.path == kChat) {
    body["messages"] = {{{"role", "user"}, {"content", "hi"}}};
  } else {
    body["prompt"] = {1, 2, 3};
  }
  c.spoil(body);
  const int port = Server().server().http_port();
  const HttpReply reply = Post(port, c.path, body.dump());
  EXPECT_EQ(reply.status, c.status) << reply.body.substr(0, 1000);
  EXPECT_LT(reply.body.size(), 20000u);
  if (c.status != 200) {
    const Json error = reply.json()["error"];
    EXPECT_EQ(error["param"], c.param == nullptr ? Json() : Json(c.param)) << reply.body;
    EXPECT_NE(error["message"], "");
  }
  EXPECT_TRUE(Server().WaitIdle());
  EXPECT_EQ(Post(port, kCompletions, R"({"prompt":[7],"max_tokens":1})").status, 200);
}

std::string CaseName(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }

std::string Repeat(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

Json Turn(const std::string& content) { return {{"role", "user"}, {"content", content}}; }

INSTANTIATE_TEST_SUITE_P(
    Prompt,
    BadRequestTest,
    ::testing::Values(
        Case{"None", 400, "prompt", [](Json& b) { b.erase("prompt"); }},
        Case{"EmptyText", 400, "prompt", [](Json& b) { b["prompt"] = ""; }},
        Case{"NoPrompts", 400, "prompt", [](Json& b) { b["prompt"] = Json::array(); }},
        Case{"EmptyIds", 400, "prompt", [](Json& b) { b["prompt"] = Json::parse("[[]]"); }},
        Case{"NegativeId",
             400,
             "prompt",
             [](Json& b) {
               b["prompt"] = {1, -1};
             }},
        Case{"IdEqualToTheVocabulary",
             400,
             "prompt",
             [](Json& b) {
               b["prompt"] = {1, kDemoVocab};
             }},
        Case{"IdOfTwoToThe32", 400, "prompt", [](Json& b) { b["prompt"] = {1ull << 32}; }},
        Case{"IdThatIsAFraction", 400, "prompt", [](Json& b) { b["prompt"] = {1.5}; }},
        Case{"SeventeenPrompts",
             400,
             "prompt",
             [](Json& b) { b["prompt"] = std::vector<std::string>(17, "x"); }},
        Case{"OverTheContext",
             400,
             "prompt",
             [](Json& b) { b["prompt"] = std::vector<int>(65536, 1); }},
        Case{"Nul", 200, nullptr, [](Json& b) { b["prompt"] = std::string("a\0b", 3); }},
        Case{"TenMegabytesOfSpaces",
             400,
             "prompt",
             [](Json& b) { b["prompt"] = std::string(10 << 20, ' '); }},
        Case{"OneWordOfAMegabyte",
             400,
             "prompt",
             [](Json& b) { b["prompt"] = std::string(1 << 20, 'q'); }},
        Case{"OnlyEmoji", 200, nullptr, [](Json& b) { b["prompt"] = Repeat("\U0001F600", 500); }},
        Case{"CombiningMarks",
             200,
             nullptr,
             [](Json& b) { b["prompt"] = "e" + Repeat("\u0301", 500); }},
        Case{"RightToLeft", 200, nullptr, [](Json& b) { b["prompt"] = "\u202e\u05e9\u05dc"; }},
        Case{"SpellsSpecialTokens",
             200,
             nullptr,
             [](Json& b) { b["prompt"] = "<|im_end|><|endoftext|>"; }},
        Case{"ChatWithoutMessages", 400, "messages", [](Json& b) { b.erase("messages"); }, kChat},
        Case{"ChatOfNoMessages",
             400,
             "messages",
             [](Json& b) { b["messages"] = Json::array(); },
             kChat},
        Case{"ChatWithAnUnknownRole",
             400,
             "messages",
             [](Json& b) { b["messages"][0]["role"] = "root"; },
             kChat},
        Case{"ChatThatSpellsSpecialTokens",
             200,
             nullptr,
             [](Json& b) { b["messages"][0] = Turn("<|im_end|><|im_start|>system"); },
             kChat},
        Case{"ChatOfTenThousandMessages",
             400,
             "messages",
             [](Json& b) { b["messages"] = std::vector<Json>(10000, Turn("x")); },
             kChat},
        Case{"ChatWithAnImage",
             400,
             "messages[0].content[0].type",
             [](Json& b) {
               b["messages"][0]["content"] = {{{"type", "image_url"}}};
             },
             kChat}),
    CaseName);

INSTANTIATE_TEST_SUITE_P(
    Sampling,
    BadRequestTest,
    ::testing::Values(
        Case{"TemperatureMinusZero", 200, nullptr, [](Json& b) { b["temperature"] = -0.0; }},
        Case{"TemperatureDenormal", 200, nullptr, [](Json& b) { b["temperature"] = 1e-42; }},
        Case{"TemperatureHuge", 400, "temperature", [](Json& b) { b["temperature"] = 1e38; }},
        Case{"TemperatureText", 400, "temperature", [](Json& b) { b["temperature"] = "NaN"; }},
        Case{"TopPZero", 400, "top_p", [](Json& b) { b["top_p"] = 0; }},
        Case{"TopPOverOne", 400, "top_p", [](Json& b) { b["top_p"] = 1.01; }},
        Case{"TopKZero", 200, nullptr, [](Json& b) { b["top_k"] = 0; }},
        Case{"TopKHuge", 200, nullptr, [](Json& b) { b["top_k"] = INT32_MAX; }},
        Case{"TopKBeyond", 400, "top_k", [](Json& b) { b["top_k"] = int64_t{1} << 40; }},
        Case{"PenaltyExtreme", 400, "presence_penalty", [](Json& b) { b["presence_penalty"] = 3; }},
        Case{"NZero", 400, "n", [](Json& b) { b["n"] = 0; }},
        Case{"NHuge", 400, "n", [](Json& b) { b["n"] = 1000000; }},
        Case{"SeedSmallest", 200, nullptr, [](Json& b) { b["seed"] = INT64_MIN; }},
        Case{"SeedLargest", 200, nullptr, [](Json& b) { b["seed"] = UINT64_MAX; }},
        Case{"LogitBiasOfAHundredThousandIds",
             400,
             "logit_bias",
             [](Json& b) {
               for (int i = 0; i < 100000; ++i) b["logit_bias"][absl::StrCat(i)] = 1;
             }},
        Case{"LogitBiasOfAnUnknownId",
             400,
             "logit_bias",
             [](Json& b) {
               b["logit_bias"] = {{"2048", 1}};
             }},
        Case{"MaxTokensZero", 400, "max_tokens", [](Json& b) { b["max_tokens"] = 0; }},
        Case{"MaxTokensLargest", 400, "max_tokens", [](Json& b) { b["max_tokens"] = UINT32_MAX; }},
        Case{"MinTokensOverMaxTokens", 400, "min_tokens", [](Json& b) { b["min_tokens"] = 5; }},
        Case{"TenThousandStopStrings",
             400,
             "stop",
             [](Json& b) { b["stop"] = std::vector<std::string>(10000, "x"); }},
        Case{"EmptyStopString", 400, "stop", [](Json& b) { b["stop"] = ""; }},
        Case{"StopStringOfAMegabyte",
             400,
             "stop",
             [](Json& b) { b["stop"] = std::string(1 << 20, 'x'); }},
        Case{"OverlappingStopStrings",
             200,
             nullptr,
             [](Json& b) {
               b["stop"] = {"aa", "aaa"};
             }},
        Case{"UnknownStopId",
             400,
             "stop_token_ids",
             [](Json& b) { b["stop_token_ids"] = {UINT32_MAX}; }},
        Case{"LogProbsOfAMillionIds", 400, "logprobs", [](Json& b) { b["logprobs"] = 1000000; }},
        Case{"TopLogProbsOfAMillionIds",
             400,
             "top_logprobs",
             [](Json& b) {
               b["logprobs"] = true;
               b["top_logprobs"] = 1000000;
             },
             kChat}),
    CaseName);

INSTANTIATE_TEST_SUITE_P(
    Protocol,
    BadRequestTest,
    ::testing::Values(
        Case{"UnknownModel", 404, nullptr, [](Json& b) { b["model"] = "gpt-4"; }},
        Case{"ModelNameOfAMegabyte",
             400,
             "model",
             [](Json& b) { b["model"] = std::string(1 << 20, 'm'); }},
        Case{"RequestIdOfAMegabyte",
             400,
             "request_id",
             [](Json& b) { b["request_id"] = std::string(1 << 20, 'i'); }},
        Case{"RequestIdWithControlCharacters",
             400,
             "request_id",
             [](Json& b) { b["request_id"] = "a\nb"; }},
        Case{"CacheSaltOfAMegabyte",
             400,
             "cache_salt",
             [](Json& b) { b["cache_salt"] = std::string(1 << 20, 's'); }},
        Case{"PriorityTooHigh", 400, "priority", [](Json& b) { b["priority"] = -101; }},
        Case{"UnknownMember", 400, "temprature", [](Json& b) { b["temprature"] = 1; }},
        Case{"MemberNameOfAMegabyte",
             400,
             "mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm",
             [](Json& b) { b[std::string(1 << 20, 'm')] = 1; }},
        Case{"ASchemaOfTenMegabytes",
             400,
             "response_format.type",
             [](Json& b) {
               b["response_format"] = {{"type", "json_schema"},
                                       {"json_schema", std::string(10 << 20, 's')}};
             }},
        Case{"ToolsInChat", 400, "tools", [](Json& b) { b["tools"] = {Json::object()}; }, kChat},
        Case{"UsageWithoutAStream",
             400,
             "stream_options",
             [](Json& b) {
               b["stream_options"] = {{"include_usage", true}};
             }},
        Case{"UnknownMode",
             400,
             "asynctls.mode",
             [](Json& b) {
               b["asynctls"] = {{"mode", "sparse"}};
             }},
        Case{"TailOverThePrompt",
             400,
             "asynctls.tail",
             [](Json& b) {
               b["asynctls"] = {{"tail", 3}};
             }},
        Case{"BodyOverTheLimit",
             413,
             nullptr,
             [](Json& b) { b["prompt"] = std::string(17 << 20, 'x'); }}),
    CaseName);

TEST(BadBodyTest, LoneSurrogatesAreNoText) {
  const HttpReply reply =
      Post(Server().server().http_port(), kCompletions, R"({"prompt":"\ud800","max_tokens":1})");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.json()["error"]["code"], "invalid_json");
}

}  // namespace
}  // namespace asynctls::testing
