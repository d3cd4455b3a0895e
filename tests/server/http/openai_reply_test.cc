// SPDX-License-Identifier: Apache-2.0
// Chat and completions over a socket: the shape of every event, and how calls end.
#include "server/http/openai_reply.h"

#include <gtest/gtest.h>

#include <memory>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/testing/http_client.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

constexpr char kChat[] = "/v1/chat/completions";
constexpr char kCompletions[] = "/v1/completions";

TestServer::Options HttpOptions() {
  TestServer::Options options = TestServer::Defaults();
  options.config.set_http_listen("127.0.0.1:0");
  return options;
}

std::vector<uint32_t> Prompt(uint32_t first) { return {first, 2, 3, 4, 5}; }

std::string Body(const std::vector<uint32_t>& prompt, uint32_t tokens, const std::string& more) {
  return absl::StrCat("{\"prompt\":[",
                      absl::StrJoin(prompt, ","),
                      "],\"temperature\":0,\"ignore_eos\":true,\"max_tokens\":",
                      tokens,
                      more.empty() ? "" : ",",
                      more,
                      "}");
}

class OpenAiReplyTest : public ::testing::Test {
 protected:
  explicit OpenAiReplyTest(const TestServer::Options& options = HttpOptions())
      : server_(options), port_(server_.server().http_port()) {}

  // The text FakeWorker answers.
  std::string ExpectedText(const std::vector<uint32_t>& prompt, uint32_t tokens) {
    const auto text = server_.tokenizer().Decode(ExpectedReply(prompt, tokens, kDemoVocab),
                                                 /*skip_special=*/true);
    EXPECT_TRUE(text.ok());
    return *text;
  }

  TestServer server_;
  const int port_;
};

// The text of the events' choices with this index.
std::string TextOf(const HttpReply& reply, int index = 0) {
  std::string out;
  for (const std::string& event : reply.events()) {
    const Json json = Json::parse(event, nullptr, false);
    if (!json.is_object() || json["choices"].empty()) continue;
    const Json& choice = json["choices"][0];
    if (choice["index"] != index) continue;
    if (choice.contains("text")) out += choice["text"].get<std::string>();
    if (choice.contains("delta")) out += choice["delta"].value("content", "");
  }
  return out;
}

TEST_F(OpenAiReplyTest, ACompletionInOnePiece) {
  const HttpReply reply = Post(port_, kCompletions, Body(Prompt(1), 8, ""));
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(reply.Header("Content-Type"), "application/json");
  const Json json = reply.json();
  const std::string id = json["id"];
  EXPECT_TRUE(absl::StartsWith(id, "cmpl-"));
  const std::string expected = absl::StrCat(
      "{\"id\":\"",
      id,
      "\",\"object\":\"text_completion\",\"created\":",
      json["created"].get<int64_t>(),
      ",\"model\":\"fake\",\"choices\":[{\"index\":0,\"text\":",
      JsonString(ExpectedText(Prompt(1), 8)),
      ",\"logprobs\":null,\"finish_reason\":\"length\",",
      "\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":8,",
      "\"total_tokens\":13,\"prompt_tokens_details\":{\"cached_tokens\":0},\"asynctls\":",
      json["usage"]["asynctls"].dump(),
      "}}");
  EXPECT_EQ(Json::parse(reply.body), Json::parse(expected));
  EXPECT_EQ(reply.body.substr(0, 60), expected.substr(0, 60));
}

TEST_F(OpenAiReplyTest, AChatStreamByteForByte) {
  HttpClient client(port_);
  const std::string body = R"({"model":"fake","messages":[{"role":"user","content":"hello"}],)"
                           R"("temperature":0,"ignore_eos":true,"max_tokens":6,"stream":true,)"
                           R"("stream_options":{"include_usage":true},"request_id":"r-1"})";
  client.SendRequest("POST", kChat, body);
  const HttpReply reply = client.ReadReply();
  EXPECT_EQ(reply.head,
            "HTTP/1.1 200 OK\r\nServer: asynctls\r\nContent-Type: text/event-stream; "
            "charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-cache\r\n"
            "X-Request-Id: r-1\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::vector<std::string> events = reply.events();
  ASSERT_GE(events.size(), 4u);
  const std::string created = absl::StrCat(Json::parse(events[0])["created"].get<int64_t>());
  const std::string head =
      absl::StrCat(R"({"id":"r-1","object":"chat.completion.chunk","created":)",
                   created,
                   R"(,"model":"fake","choices":[)");
  const auto chunk = [&](const std::string& delta, const std::string& finish) {
    return absl::StrCat(head,
                        "{\"index\":0,\"delta\":{",
                        delta,
                        "},\"logprobs\":null,",
                        finish,
                        "}],\"usage\":null}");
  };
  EXPECT_EQ(events[0], chunk(R"("role":"assistant","content":"")", R"("finish_reason":null)"));
  for (size_t i = 1; i + 3 < events.size(); ++i) {
    const std::string text = Json::parse(events[i])["choices"][0]["delta"]["content"];
    EXPECT_EQ(events[i],
              chunk(absl::StrCat("\"content\":", JsonString(text)), R"("finish_reason":null)"));
  }
  EXPECT_EQ(events[events.size() - 3], chunk("", R"("finish_reason":"length","stop_reason":null)"));
  const std::string usage = events[events.size() - 2];
  EXPECT_TRUE(absl::StartsWith(usage, absl::StrCat(head, R"(],"usage":{"prompt_tokens":)")))
      << usage;
  EXPECT_EQ(Json::parse(usage)["usage"]["completion_tokens"], 6);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_TRUE(absl::EndsWith(reply.body, "data: [DONE]\n\n"));
  // The same in one piece.
  std::string whole = body;
  whole.replace(whole.find("\"stream\""), std::string::npos, "\"stream\":false}");
  client.SendRequest("POST", kChat, whole);
  const Json message = client.ReadReply().json()["choices"][0]["message"];
  EXPECT_EQ(message["content"], TextOf(reply));
  EXPECT_EQ(message["role"], "assistant");
}

TEST_F(OpenAiReplyTest, ACompletionStreamWithoutUsage) {
  const HttpReply reply = Post(port_, kCompletions, Body(Prompt(2), 8, "\"stream\":true"));
  EXPECT_EQ(TextOf(reply), ExpectedText(Prompt(2), 8));
  const std::vector<std::string> events = reply.events();
  const std::regex form(
      R"re(\{"id":"cmpl-[0-9a-f]{24}","object":"text_completion","created":\d+,"model":"fake",)re"
      R"re("choices":\[\{"index":0,"text":".*","logprobs":null,"finish_reason":)re"
      R"re((null|"length","stop_reason":null)\}\]\})re");
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    EXPECT_TRUE(std::regex_match(events[i], form)) << events[i];
  }
  EXPECT_EQ(events.back(), "[DONE]");
}

TEST_F(OpenAiReplyTest, SeveralChoicesAndPrompts) {
  const std::string two =
      "{\"prompt\":[[1,2,3],[4,5,6]],\"n\":2,\"temperature\":0,"
      "\"ignore_eos\":true,\"max_tokens\":5";
  const HttpReply reply = Post(port_, kCompletions, two + "}");
  ASSERT_EQ(reply.status, 200) << reply.body;
  const Json json = reply.json();
  ASSERT_EQ(json["choices"].size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(json["choices"][i]["index"], i);
    EXPECT_EQ(
        json["choices"][i]["text"],
        ExpectedText(i < 2 ? std::vector<uint32_t>{1, 2, 3} : std::vector<uint32_t>{4, 5, 6}, 5));
  }
  EXPECT_EQ(json["usage"]["prompt_tokens"], 6);
  EXPECT_EQ(json["usage"]["completion_tokens"], 20);
  const HttpReply stream = Post(
      port_, kCompletions, two + ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
  for (int i = 0; i < 4; ++i) EXPECT_EQ(TextOf(stream, i), json["choices"][i]["text"]);
  const std::vector<std::string> events = stream.events();
  EXPECT_EQ(events.back(), "[DONE]");
  const Json usage = Json::parse(events[events.size() - 2]);
  EXPECT_TRUE(usage["choices"].empty());
  EXPECT_EQ(usage["usage"]["completion_tokens"], 20);
}

TEST_F(OpenAiReplyTest, OneBadPromptOfSeveralEndsTheCall) {
  const HttpReply reply =
      Post(port_, kCompletions, "{\"prompt\":[[1,2,3],[99999]],\"max_tokens\":60000}");
  EXPECT_EQ(reply.status, 400) << reply.body;
  EXPECT_EQ(reply.json()["error"]["param"], "prompt");
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(OpenAiReplyTest, StopStrings) {
  const std::string text = ExpectedText(Prompt(3), 40);
  const size_t at = text.find_first_of("abcdefghijklmnopqrstuvwxyz", 10);
  ASSERT_NE(at, std::string::npos);
  const std::string stop = text.substr(at, 1);
  const HttpReply reply =
      Post(port_, kCompletions, Body(Prompt(3), 40, absl::StrCat("\"stop\":", JsonString(stop))));
  const Json choice = reply.json()["choices"][0];
  EXPECT_EQ(choice["text"], text.substr(0, text.find(stop)));
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["stop_reason"], stop);
}

TEST_F(OpenAiReplyTest, LogProbsOfChat) {
  const std::string body =
      R"({"messages":[{"role":"user","content":"x"}],"max_tokens":4,"ignore_eos":true,)"
      R"("temperature":0,"logprobs":true,"top_logprobs":2)";
  const Json whole = Post(port_, kChat, body + "}").json()["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(whole.size(), 4u);
  for (const Json& token : whole) {
    EXPECT_LT(token["logprob"], 0);
    EXPECT_EQ(token["top_logprobs"].size(), 2u);
    EXPECT_EQ(token["top_logprobs"][0]["token"], token["token"]);
    EXPECT_TRUE(token["bytes"].is_array());
  }
  const HttpReply stream = Post(port_, kChat, body + ",\"stream\":true}");
  Json streamed = Json::array();
  for (const std::string& event : stream.events()) {
    if (event == "[DONE]") continue;
    const Json logprobs = Json::parse(event)["choices"][0]["logprobs"];
    if (logprobs.is_null()) continue;
    for (const Json& token : logprobs["content"]) streamed.push_back(token);
  }
  EXPECT_EQ(streamed, whole);
}

TEST_F(OpenAiReplyTest, LogProbsAndEchoOfCompletions) {
  const Json choice = Post(port_, kCompletions, Body(Prompt(7), 3, "\"logprobs\":2,\"echo\":true"))
                          .json()["choices"][0];
  const Json& logprobs = choice["logprobs"];
  for (const char* list : {"tokens", "token_logprobs", "top_logprobs", "text_offset"}) {
    EXPECT_EQ(logprobs[list].size(), 8u) << list;  // prompt and reply
  }
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
  for (int i = 1; i < 8; ++i) EXPECT_LT(logprobs["token_logprobs"][i], 0);
  const std::vector<uint32_t> prompt = Prompt(7);
  const auto echo = server_.tokenizer().Decode(prompt, /*skip_special=*/false);
  EXPECT_EQ(choice["text"], *echo + ExpectedText(prompt, 3));
  const HttpReply stream =
      Post(port_, kCompletions, Body(prompt, 3, "\"echo\":true,\"stream\":true"));
  EXPECT_EQ(TextOf(stream), choice["text"]);
  // Streams count characters on from event to event.
  const HttpReply offsets =
      Post(port_, kCompletions, Body(prompt, 5, "\"logprobs\":0,\"stream\":true"));
  int seen = 0, last = -1;
  for (const std::string& event : offsets.events()) {
    if (event == "[DONE]") continue;
    const Json logprobs = Json::parse(event)["choices"][0]["logprobs"];
    if (logprobs.is_null()) continue;
    for (const Json& at : logprobs["text_offset"]) {
      EXPECT_GT(at, last);
      last = at;
      ++seen;
    }
  }
  EXPECT_EQ(seen, 5) << offsets.body;
}

TEST_F(OpenAiReplyTest, PromptLogProbs) {
  const Json completion = Post(port_, kCompletions, Body(Prompt(8), 1, "\"prompt_logprobs\":1"))
                              .json()["choices"][0]["prompt_logprobs"];
  ASSERT_EQ(completion.size(), 5u);
  EXPECT_TRUE(completion[0].is_null());
  EXPECT_TRUE(completion[1].contains("2"));
  const Json chat =
      Post(port_,
           kChat,
           R"({"messages":[{"role":"user","content":"x"}],"max_tokens":1,"prompt_logprobs":0})")
          .json();
  EXPECT_EQ(chat["prompt_logprobs"].size(), chat["usage"]["prompt_tokens"]);
}

TEST_F(OpenAiReplyTest, MoreLogProbsThanOneAnswerHoldsAreRefused) {
  std::vector<uint32_t> prompt(20000, 7);
  const HttpReply reply = Post(port_, kCompletions, Body(prompt, 1, "\"prompt_logprobs\":20"));
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.json()["error"]["param"], "prompt_logprobs");
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(OpenAiReplyTest, IdsInUseAreRefused) {
  HttpClient first(port_);
  first.SendRequest(
      "POST", kCompletions, Body(Prompt(1), 60000, R"("stream":true,"request_id":"a")"));
  first.ReadTo("data: ");
  const HttpReply second = Post(port_, kCompletions, Body(Prompt(1), 1, R"("request_id":"a")"));
  EXPECT_EQ(second.status, 409);
  EXPECT_EQ(second.json()["error"]["code"], "duplicate_request_id");
  first.Close();
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(OpenAiReplyTest, AnAbortedStreamSaysSo) {
  HttpClient client(port_);
  client.SendRequest(
      "POST", kCompletions, Body(Prompt(1), 60000, R"("stream":true,"request_id":"b")"));
  client.ReadTo("\r\n\r\n");
  server_.server().frontend().Abort("b");
  const std::string rest = client.ReadTo("data: [DONE]\n\n");
  EXPECT_NE(rest.find("\"finish_reason\":\"abort\""), std::string::npos);
  EXPECT_TRUE(server_.WaitIdle());
}

class SlowReplyTest : public OpenAiReplyTest {
 protected:
  static TestServer::Options Options() {
    TestServer::Options options = HttpOptions();
    options.fake.step_time = absl::Milliseconds(5);
    options.config.set_max_sequences(2);
    return options;
  }
  SlowReplyTest() : OpenAiReplyTest(Options()) {}
};

// Whoever leaves frees what it held: waiting, in prefill, in decode, streaming or not.
TEST_F(SlowReplyTest, ClientsThatLeaveFreeTheirBlocks) {
  std::vector<uint32_t> long_prompt(60000, 7);
  for (const char* stream : {"\"stream\":true", "\"stream\":false"}) {
    HttpClient decoding(port_), prefilling(port_), waiting(port_);
    decoding.SendRequest("POST", kCompletions, Body(Prompt(1), 5000, stream));
    ASSERT_TRUE(server_.WaitFor([](const auto& s) { return s.running == 1; }));
    prefilling.SendRequest("POST", kCompletions, Body(long_prompt, 10, stream));
    ASSERT_TRUE(server_.WaitFor([](const auto& s) { return s.running + s.waiting == 2; }));
    waiting.SendRequest("POST", kCompletions, Body(Prompt(2), 5000, stream));
    ASSERT_TRUE(server_.WaitFor([](const auto& s) { return s.running + s.waiting == 3; }));
    waiting.Close();
    EXPECT_TRUE(server_.WaitFor([](const auto& s) { return s.running + s.waiting == 2; }));
    prefilling.Close();
    EXPECT_TRUE(server_.WaitFor([](const auto& s) { return s.running + s.waiting == 1; }));
    decoding.Close();
    EXPECT_TRUE(server_.WaitIdle());
  }
}

TEST_F(SlowReplyTest, DeadlinesInTheMiddleAreToldInBand) {
  const HttpReply reply = Fetch(port_,
                                "POST",
                                kCompletions,
                                Body(Prompt(1), 5000, "\"stream\":true"),
                                "X-Request-Timeout: 0.3\r\n");
  EXPECT_EQ(reply.status, 200);
  const std::vector<std::string> events = reply.events();
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(Json::parse(events[events.size() - 2])["error"]["type"], "timeout_error");
  EXPECT_TRUE(server_.WaitIdle());
  const HttpReply whole =
      Fetch(port_, "POST", kCompletions, Body(Prompt(1), 5000, ""), "X-Request-Timeout: 0.05\r\n");
  EXPECT_EQ(whole.status, 504);
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(SlowReplyTest, DrainEndsStreamsInBand) {
  HttpClient client(port_);
  client.SendRequest("POST", kCompletions, Body(Prompt(1), 5000, "\"stream\":true"));
  client.ReadTo("data: ");
  server_.server().Drain(absl::Milliseconds(50));
  const std::string rest = client.ReadToEnd();
  EXPECT_NE(rest.find("service_unavailable_error"), std::string::npos);
  EXPECT_NE(rest.find("data: [DONE]\n\n\r\n0\r\n\r\n"), std::string::npos);
}

TEST_F(OpenAiReplyTest, AReaderThatStopsDoesNotKeepItsBlocks) {
  HttpClient slow(port_, /*receive_buffer=*/4096);
  slow.SendRequest("POST", kCompletions, Body(Prompt(1), 20000, "\"stream\":true"));
  ASSERT_TRUE(server_.WaitFor([](const auto& s) { return s.generation_tokens >= 20000; }));
  EXPECT_TRUE(server_.WaitIdle());  // finished in the engine, though not read
  EXPECT_NE(slow.ReadTo("data: [DONE]\n\n").find("\"finish_reason\":\"length\""),
            std::string::npos);
}

TEST(OpenAiReplyManyTest, AThousandStreamsAtATime) {
  TestServer::Options options = HttpOptions();
  options.config.set_max_waiting_requests(2000);
  options.config.set_max_connections(2000);
  TestServer server(options);
  const int port = server.server().http_port();
  constexpr uint32_t kStreams = 1000, kTokens = 12;
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (uint32_t i = 0; i < kStreams; ++i) {
    clients.push_back(std::make_unique<HttpClient>(port));
    ASSERT_TRUE(
        clients[i]->SendRequest("POST", kCompletions, Body(Prompt(i), kTokens, "\"stream\":true")));
  }
  for (uint32_t i = 0; i < kStreams; ++i) {
    const HttpReply reply = clients[i]->ReadReply();
    ASSERT_EQ(reply.status, 200) << i << reply.body;
    const auto text =
        server.tokenizer().Decode(ExpectedReply(Prompt(i), kTokens, kDemoVocab), true);
    ASSERT_EQ(TextOf(reply), *text) << i;
    ASSERT_TRUE(absl::EndsWith(reply.body, "data: [DONE]\n\n"));
  }
  EXPECT_TRUE(server.WaitIdle());
}

TEST(OpenAiReplyManyTest, AFullQueueSaysWhenToTryAgain) {
  TestServer::Options options = HttpOptions();
  options.fake.step_time = absl::Milliseconds(20);
  options.config.set_max_sequences(1);
  options.config.set_max_waiting_requests(1);
  TestServer server(options);
  const int port = server.server().http_port();
  HttpClient running(port), waiting(port);
  running.SendRequest("POST", kCompletions, Body(Prompt(1), 5000, ""));
  ASSERT_TRUE(server.WaitFor([](const auto& s) { return s.running == 1; }));
  waiting.SendRequest("POST", kCompletions, Body(Prompt(2), 5000, ""));
  ASSERT_TRUE(server.WaitFor([](const auto& s) { return s.waiting == 1; }));
  const HttpReply refused = Post(port, kCompletions, Body(Prompt(3), 1, ""));
  EXPECT_EQ(refused.status, 429);
  EXPECT_NE(refused.Header("Retry-After"), "");
  EXPECT_EQ(refused.json()["error"]["code"], "queue_full");
}

// Bodies as the openai Python package (2.x) sends them, its extra_body members included.
TEST_F(OpenAiReplyTest, RecordedBodiesOfTheOpenAiClient) {
  const std::string headers =
      "Accept: application/json\r\nUser-Agent: OpenAI/Python\r\nAuthorization: Bearer x\r\n"
      "X-Stainless-Lang: python\r\nX-Stainless-Retry-Count: 0\r\nx-stainless-read-timeout: 600\r\n"
      "Accept-Encoding: gzip, deflate\r\n";
  const std::pair<const char*, const char*> calls[] = {
      {kChat,
       R"({"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}],)"
       R"("model":"fake","max_tokens":5,"temperature":0})"},
      {kChat,
       R"({"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}],"model":"fake",)"
       R"("logprobs":true,"max_completion_tokens":5,"n":2,"seed":7,"stop":["zzzz"],)"
       R"("stream":true,"stream_options":{"include_usage":true},"top_logprobs":2,"user":"me",)"
       R"("asynctls":{"mode":"exact","budget":256},"chat_template_kwargs":{"enable_thinking":false}})"},
      {kCompletions,
       R"({"model":"fake","prompt":["Once upon","a time"],"echo":true,"logprobs":1,)"
       R"("max_tokens":5,"presence_penalty":0.5,"frequency_penalty":0.5,"logit_bias":{"5":-100}})"},
      {kCompletions, R"({"model":"fake","prompt":"Once","max_tokens":5,"stream":true})"},
  };
  for (const auto& [path, body] : calls) {
    const HttpReply reply = Fetch(port_, "POST", path, body, headers);
    EXPECT_EQ(reply.status, 200) << body << reply.body;
    EXPECT_NE(reply.body.find("finish_reason\":\""), std::string::npos) << body;
  }
  EXPECT_EQ(Fetch(port_, "GET", "/v1/models", "", headers).status, 200);
}

}  // namespace
}  // namespace asynctls::testing
