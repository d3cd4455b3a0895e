// SPDX-License-Identifier: Apache-2.0
#include "server/http/openai_request.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "server/frontend/errors.h"

namespace asynctls {
namespace {

constexpr char kMessages[] = R"("messages":[{"role":"user","content":"hi"}])";

std::string Chat(const std::string& more) {
  return absl::StrCat("{", kMessages, more.empty() ? "" : ",", more, "}");
}
std::string Completion(const std::string& more) {
  return absl::StrCat("{\"prompt\":\"hi\"", more.empty() ? "" : ",", more, "}");
}

void ExpectProto(const v1::GenerateRequest& request, const std::string& text) {
  v1::GenerateRequest expected;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &expected));
  EXPECT_EQ(request.DebugString(), expected.DebugString());
}

TEST(OpenAiRequestTest, AFullChatRequest) {
  const auto parsed = ParseChatRequest(R"({
      "model": "m", "request_id": "r1", "cache_salt": "salt",
      "messages": [{"role": "developer", "content": "be brief"},
                   {"role": "user", "content": [{"type": "text", "text": "a"},
                                                {"type": "text", "text": "b"}]},
                   {"role": "assistant", "content": "c", "reasoning_content": "d",
                    "refusal": null, "tool_calls": [], "audio": null},
                   {"role": "user", "content": ""}],
      "max_tokens": 7, "max_completion_tokens": 9, "min_tokens": 2, "temperature": 0.5,
      "top_p": 0.9, "top_k": -1, "min_p": 0.1, "n": 2, "seed": -1, "stop": ["x", "y"],
      "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.5,
      "logit_bias": {"5": -100}, "logprobs": true, "top_logprobs": 3, "ignore_eos": true,
      "stop_token_ids": [1, 2], "include_stop_str_in_output": true, "skip_special_tokens": false,
      "priority": -5, "chat_template_kwargs": {"enable_thinking": false},
      "stream": true, "stream_options": {"include_usage": true},
      "asynctls": {"mode": "lagged", "budget": 512, "blocks": 16, "top_p": 0.8, "tail": 4,
                   "selector": "bound"},
      "user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
      "parallel_tool_calls": true, "tools": [], "tool_choice": "none",
      "response_format": {"type": "text"}})");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->prompts.size(), 1u);
  ExpectProto(*parsed->prompts[0], R"(
      request_id: "r1" model: "m" cache_salt: "salt" priority: 5
      chat {
        messages { role: "system" content: "be brief" }
        messages { role: "user" content: "ab" }
        messages { role: "assistant" content: "c" }
        messages { role: "user" content: "" }
        enable_thinking: false
      }
      sampling {
        temperature: 0.5 top_k: -1 top_p: 0.9 min_p: 0.1 seed: 18446744073709551615
        presence_penalty: 1 frequency_penalty: -1 repetition_penalty: 1.5
        logit_bias { key: 5 value: -100 } n: 2
      }
      stopping {
        max_tokens: 9 min_tokens: 2 stop: "x" stop: "y" stop_token_ids: 1 stop_token_ids: 2
        ignore_eos: true include_stop: true
      }
      sparse {
        mode: ATTENTION_MODE_LAGGED selector: SELECTOR_BOUND budget: 512 blocks: 16 top_p: 0.8
        tail: 4
      }
      response { token_ids: true log_probs: true top_log_probs: 3 skip_special_tokens: false })");
  const OpenAiOptions& options = parsed->options;
  EXPECT_TRUE(options.chat);
  EXPECT_TRUE(options.stream);
  EXPECT_TRUE(options.include_usage);
  EXPECT_EQ(options.logprobs, 3u);
  EXPECT_FALSE(options.split_reasoning);
}

TEST(OpenAiRequestTest, AShortChatRequestLeavesTheRestToTheServer) {
  const auto parsed = ParseChatRequest(Chat(R"("temperature":null,"stop":null,"tools":null)"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ExpectProto(*parsed->prompts[0],
              R"(chat { messages { role: "user" content: "hi" } }
                 sampling {} stopping {} response {})");
  EXPECT_FALSE(parsed->options.stream);
  EXPECT_TRUE(parsed->options.split_reasoning);
}

TEST(OpenAiRequestTest, CompletionPrompts) {
  const auto one = [](const std::string& prompt) {
    const auto parsed = ParseCompletionRequest(absl::StrCat("{\"prompt\":", prompt, "}"));
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    std::string out;
    for (const auto& request : parsed->prompts) {
      out += request->has_text() ? "'" + request->text() + "'" : "[";
      for (uint32_t id : request->token_ids().ids()) absl::StrAppend(&out, id, " ");
    }
    return out;
  };
  EXPECT_EQ(one(R"("a")"), "'a'");
  EXPECT_EQ(one(R"(["a"])"), "'a'");
  EXPECT_EQ(one(R"(["a","b"])"), "'a''b'");
  EXPECT_EQ(one("[1,2]"), "[1 2 ");
  EXPECT_EQ(one("[[1,2],[3]]"), "[1 2 [3 ");
}

TEST(OpenAiRequestTest, CompletionLogProbsAndEcho) {
  const auto parsed = ParseCompletionRequest(
      Completion(R"("logprobs":2,"echo":true,"best_of":1,"suffix":"","max_tokens":1)"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(parsed->options.echo);
  EXPECT_FALSE(parsed->options.prompt_logprobs);
  ExpectProto(*parsed->prompts[0],
              R"(text: "hi" sampling {} stopping { max_tokens: 1 }
                 response { token_ids: true log_probs: true top_log_probs: 2 prompt_log_probs: 2 })");
}

struct Bad {
  std::string more;   // members beside the prompt
  std::string field;  // named by the error
};

TEST(OpenAiRequestTest, BadMembersOfBothEndpointsAreNamed) {
  const Bad cases[] = {
      {R"("model":1)", "model"},
      {R"("request_id":{})", "request_id"},
      {R"("cache_salt":[])", "cache_salt"},
      {R"("temperature":"hot")", "temperature"},
      {R"("temperature":true)", "temperature"},
      {R"("top_p":[])", "top_p"},
      {R"("min_p":"0")", "min_p"},
      {R"("top_k":1.5)", "top_k"},
      {R"("top_k":99999999999)", "top_k"},
      {R"("n":-1)", "n"},
      {R"("n":"2")", "n"},
      {R"("seed":1.5)", "seed"},
      {R"("seed":"1")", "seed"},
      {R"("presence_penalty":{})", "presence_penalty"},
      {R"("frequency_penalty":"1")", "frequency_penalty"},
      {R"("repetition_penalty":false)", "repetition_penalty"},
      {R"("logit_bias":[])", "logit_bias"},
      {R"("logit_bias":{"x":1})", "logit_bias"},
      {R"("logit_bias":{"01":1})", "logit_bias"},
      {R"("logit_bias":{"-1":1})", "logit_bias"},
      {R"("logit_bias":{"4294967296":1})", "logit_bias"},
      {R"("logit_bias":{"1":"x"})", "logit_bias"},
      {R"("max_tokens":-1)", "max_tokens"},
      {R"("max_tokens":4294967296)", "max_tokens"},
      {R"("max_tokens":1e3)", "max_tokens"},
      {R"("min_tokens":-1)", "min_tokens"},
      {R"("ignore_eos":1)", "ignore_eos"},
      {R"("include_stop_str_in_output":"no")", "include_stop_str_in_output"},
      {R"("skip_special_tokens":0)", "skip_special_tokens"},
      {R"("stop_token_ids":5)", "stop_token_ids"},
      {R"("stop_token_ids":[-5])", "stop_token_ids"},
      {R"("stop":5)", "stop"},
      {R"("stop":[5])", "stop"},
      {R"("stop":{})", "stop"},
      {R"("priority":101)", "priority"},
      {R"("priority":"high")", "priority"},
      {R"("stream":"yes")", "stream"},
      {R"("stream_options":{"include_usage":true})", "stream_options"},
      {R"("stream":true,"stream_options":{"include_usage":1})", "stream_options.include_usage"},
      {R"("stream":true,"stream_options":{"other":1})", "stream_options.other"},
      {R"("stream":true,"stream_options":[])", "stream_options"},
      {R"("prompt_logprobs":-1)", "prompt_logprobs"},
      {R"("stream":true,"prompt_logprobs":1)", "prompt_logprobs"},
      {R"("asynctls":1)", "asynctls"},
      {R"("asynctls":{"mode":"sparse"})", "asynctls.mode"},
      {R"("asynctls":{"selector":"best"})", "asynctls.selector"},
      {R"("asynctls":{"budget":-1})", "asynctls.budget"},
      {R"("asynctls":{"blocks":"all"})", "asynctls.blocks"},
      {R"("asynctls":{"top_p":"1"})", "asynctls.top_p"},
      {R"("asynctls":{"tail":0.5})", "asynctls.tail"},
      {R"("asynctls":{"bugdet":1})", "asynctls.bugdet"},
      {R"("user":1)", "user"},
      {R"("metadata":"x")", "metadata"},
      {R"("store":true)", "store"},
      {R"("service_tier":"priority")", "service_tier"},
      {R"("parallel_tool_calls":"x")", "parallel_tool_calls"},
      {R"("response_format":{"type":"json_object"})", "response_format.type"},
      {R"("response_format":{"type":"json_schema","json_schema":{}})", "response_format.type"},
      {R"("response_format":{})", "response_format.type"},
      {R"("response_format":"text")", "response_format"},
      {R"("temprature":1)", "temprature"},
      {R"("guided_json":{})", "guided_json"},
  };
  for (const Bad& bad : cases) {
    const absl::Status chat = ParseChatRequest(Chat(bad.more)).status();
    EXPECT_EQ(ErrorField(chat), bad.field) << bad.more << ": " << chat;
    const absl::Status completion = ParseCompletionRequest(Completion(bad.more)).status();
    EXPECT_EQ(ErrorField(completion).substr(0, bad.field.size()), bad.field)
        << bad.more << ": " << completion;
  }
}

TEST(OpenAiRequestTest, WhatIsNotDoneHasAReasonOfItsOwn) {
  for (const char* more : {R"("store":true)",
                           R"("service_tier":"flex")",
                           R"("response_format":{"type":"json_object"})",
                           R"("tools":[{"type":"function"}])",
                           R"("tool_choice":"auto")",
                           R"("stream":true,"prompt_logprobs":1)"}) {
    const absl::Status status = ParseChatRequest(Chat(more)).status();
    EXPECT_EQ(ErrorReason(status), "UNSUPPORTED_FIELD") << more << ": " << status;
  }
  for (const char* more :
       {R"("suffix":"x")", R"("best_of":2)", R"("stream":true,"echo":true,"logprobs":1)"}) {
    const absl::Status status = ParseCompletionRequest(Completion(more)).status();
    EXPECT_EQ(ErrorReason(status), "UNSUPPORTED_FIELD") << more << ": " << status;
  }
}

TEST(OpenAiRequestTest, BadMembersOfChatAreNamed) {
  const Bad cases[] = {
      {R"("messages":null)", "messages"},
      {R"("messages":{})", "messages"},
      {R"("messages":["x"])", "messages[0]"},
      {R"("messages":[{"role":1,"content":"x"}])", "messages[0].role"},
      {R"("messages":[{"role":"user"}])", "messages[0].content"},
      {R"("messages":[{"role":"user","content":null}])", "messages[0].content"},
      {R"("messages":[{"role":"user","content":5}])", "messages[0].content"},
      {R"("messages":[{"role":"user","content":["x"]}])", "messages[0].content[0]"},
      {R"("messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}])",
       "messages[0].content[0].type"},
      {R"("messages":[{"role":"user","content":[{"type":"text"}]}])",
       "messages[0].content[0].text"},
      {R"("messages":[{"role":"user","content":"x","name":"bob"}])", "messages[0].name"},
      {R"("messages":[{"role":"assistant","content":"x","tool_calls":[{}]}])",
       "messages[0].tool_calls"},
  };
  for (const Bad& bad : cases) {
    const absl::Status status = ParseChatRequest(absl::StrCat("{", bad.more, "}")).status();
    EXPECT_EQ(ErrorField(status), bad.field) << bad.more << ": " << status;
  }
  const Bad more[] = {
      {R"("logprobs":1)", "logprobs"},
      {R"("top_logprobs":2)", "top_logprobs"},
      {R"("logprobs":true,"top_logprobs":-2)", "top_logprobs"},
      {R"("max_completion_tokens":"x")", "max_completion_tokens"},
      {R"("tools":[{"type":"function"}])", "tools"},
      {R"("tool_choice":"auto")", "tool_choice"},
      {R"("functions":[])", "functions"},
      {R"("chat_template_kwargs":{"enable_thinking":"no"})",
       "chat_template_kwargs.enable_thinking"},
      {R"("chat_template_kwargs":{"other":1})", "chat_template_kwargs.other"},
      {R"("add_generation_prompt":1)", "add_generation_prompt"},
      {R"("prompt":"x")", "prompt"},
      {R"("echo":true)", "echo"},
  };
  for (const Bad& bad : more) {
    const absl::Status status = ParseChatRequest(Chat(bad.more)).status();
    EXPECT_EQ(ErrorField(status), bad.field) << bad.more << ": " << status;
  }
}

TEST(OpenAiRequestTest, BadMembersOfCompletionsAreNamed) {
  const Bad cases[] = {
      {R"("prompt":null)", "prompt"},
      {R"("prompt":5)", "prompt"},
      {R"("prompt":[])", "prompt"},
      {R"("prompt":[1,"a"])", "prompt"},
      {R"("prompt":[1,-1])", "prompt"},
      {R"("prompt":[4294967296])", "prompt"},
      {R"("prompt":["a",1])", "prompt[1]"},
      {R"("prompt":["a",{}])", "prompt[1]"},
      {R"("prompt":[[1],["x"]])", "prompt[1]"},
      {R"("prompt":["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"])",
       "prompt"},
  };
  for (const Bad& bad : cases) {
    const absl::Status status = ParseCompletionRequest(absl::StrCat("{", bad.more, "}")).status();
    EXPECT_EQ(ErrorField(status), bad.field) << bad.more << ": " << status;
  }
  const Bad more[] = {
      {R"("logprobs":true)", "logprobs"},
      {R"("logprobs":-1)", "logprobs"},
      {R"("logprobs":21)", "logprobs"},
      {R"("echo":"x")", "echo"},
      {R"("echo":true,"logprobs":1,"stream":true)", "echo"},
      {R"("echo":true,"logprobs":1,"prompt_logprobs":1)", "prompt_logprobs"},
      {R"("suffix":"end")", "suffix"},
      {R"("best_of":3)", "best_of"},
      {R"("messages":[])", "messages"},
  };
  for (const Bad& bad : more) {
    const absl::Status status = ParseCompletionRequest(Completion(bad.more)).status();
    EXPECT_EQ(ErrorField(status), bad.field) << bad.more << ": " << status;
  }
}

TEST(OpenAiRequestTest, TokenizeAndDetokenize) {
  const auto text = ParseTokenizeRequest(
      R"({"model":"m","prompt":"x","add_special_tokens":true,"return_token_strs":true})");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->request.text(), "x");
  EXPECT_TRUE(text->token_strings);
  EXPECT_EQ(text->model, "m");
  const auto chat = ParseTokenizeRequest(Chat(R"("add_generation_prompt":false)"));
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_FALSE(chat->request.chat().add_generation_prompt());
  const auto ids = ParseDetokenizeRequest(R"({"tokens":[1,2]})");
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(ids->request.ids_size(), 2);
  EXPECT_EQ(ErrorField(ParseTokenizeRequest("{}").status()), "prompt");
  EXPECT_EQ(ErrorField(ParseTokenizeRequest(Chat(R"("prompt":"x")")).status()), "prompt");
  EXPECT_EQ(ErrorField(ParseTokenizeRequest(R"({"prompt":5})").status()), "prompt");
  EXPECT_EQ(ErrorField(ParseDetokenizeRequest("{}").status()), "tokens");
  EXPECT_EQ(ErrorField(ParseDetokenizeRequest(R"({"tokens":["x"]})").status()), "tokens");
}

TEST(OpenAiRequestTest, BodiesThatAreNoJson) {
  for (const char* body : {"", "{", "[]", "{\"prompt\":\"\xff\"}"}) {
    EXPECT_EQ(ErrorReason(ParseChatRequest(body).status()), "INVALID_JSON");
    EXPECT_EQ(ErrorReason(ParseCompletionRequest(body).status()), "INVALID_JSON");
    EXPECT_EQ(ErrorReason(ParseTokenizeRequest(body).status()), "INVALID_JSON");
    EXPECT_EQ(ErrorReason(ParseDetokenizeRequest(body).status()), "INVALID_JSON");
  }
}

}  // namespace
}  // namespace asynctls
