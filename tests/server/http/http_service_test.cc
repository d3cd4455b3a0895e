// SPDX-License-Identifier: Apache-2.0
// Every path of the HTTP port, over a socket, with FakeWorker in the place of the model.
#include "server/http/http_service.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/testing/http_client.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

TestServer::Options HttpOptions() {
  TestServer::Options options = TestServer::Defaults();
  options.config.set_http_listen("127.0.0.1:0");
  return options;
}

class HttpServiceTest : public ::testing::Test {
 protected:
  HttpServiceTest() : server_(HttpOptions()), port_(server_.server().http_port()) {}

  HttpReply Get(const std::string& path) { return Fetch(port_, "GET", path); }

  TestServer server_;
  const int port_;
};

void ExpectError(const HttpReply& reply, int status, const std::string& message) {
  EXPECT_EQ(reply.status, status) << reply.body;
  const Json error = reply.json()["error"];
  EXPECT_EQ(error.size(), 4u) << reply.body;
  for (const char* member : {"message", "type", "param", "code"}) {
    EXPECT_TRUE(error.contains(member)) << reply.body;
  }
  EXPECT_NE(error["message"].get<std::string>().find(message), std::string::npos) << reply.body;
  EXPECT_EQ(reply.Header("Content-Type"), "application/json");
}

TEST_F(HttpServiceTest, Models) {
  const Json list = Get("/v1/models").json();
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 1u);
  EXPECT_EQ(list["data"][0]["id"], "fake");
  EXPECT_EQ(list["data"][0]["object"], "model");
  EXPECT_EQ(list["data"][0]["owned_by"], "asynctls");
  EXPECT_EQ(list["data"][0]["max_model_len"], 65536);
  EXPECT_GT(list["data"][0]["created"], 1600000000);
  EXPECT_EQ(Get("/v1/models/fake").json(), list["data"][0]);
  EXPECT_EQ(Get("/v1/models/f%61ke").json(), list["data"][0]);
  const HttpReply other = Get("/v1/models/gpt-4");
  ExpectError(other, 404, "model 'gpt-4' is not served here");
  EXPECT_EQ(other.json()["error"]["code"], "model_not_found");
}

TEST_F(HttpServiceTest, Health) {
  for (const char* path : {"/health", "/health/live", "/health/ready", "/health/startup"}) {
    const HttpReply reply = Get(path);
    EXPECT_EQ(reply.status, 200) << path;
    EXPECT_EQ(reply.body, "{\"status\":\"ok\"}") << path;
  }
  EXPECT_EQ(Get("/ping").status, 200);
  EXPECT_EQ(Fetch(port_, "POST", "/ping").status, 200);
  EXPECT_EQ(Get("/version").json()["version"], ServerVersion());
  EXPECT_EQ(Fetch(port_, "HEAD", "/health").status, 200);
}

TEST(HttpServiceLoadingTest, SaysThatTheModelIsLoading) {
  TestServer::Options options = HttpOptions();
  options.open = false;
  TestServer server(options);
  const int port = server.server().http_port();
  const HttpReply health = Fetch(port, "GET", "/health");
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(health.json()["reason"], "the model is loading");
  EXPECT_EQ(Fetch(port, "GET", "/health/ready").status, 503);
  EXPECT_EQ(Fetch(port, "GET", "/health/startup").status, 503);
  EXPECT_EQ(Fetch(port, "GET", "/health/live").status, 200);
  for (const char* path : {"/v1/completions", "/tokenize"}) {
    const HttpReply reply = Post(port, path, "{\"prompt\":\"x\"}");
    ExpectError(reply, 503, "the model is loading");
    EXPECT_EQ(reply.Header("Retry-After"), "10") << path;
    EXPECT_EQ(reply.json()["error"]["code"], "loading");
  }
  ExpectError(Fetch(port, "GET", "/v1/models"), 503, "the model is loading");
  EXPECT_EQ(Fetch(port, "GET", "/status.json").json()["health"]["started"], false);
  EXPECT_EQ(Fetch(port, "GET", "/").status, 200);
}

TEST_F(HttpServiceTest, TokenizeAndDetokenize) {
  const HttpReply reply = Post(
      port_, "/tokenize", R"({"model":"fake","prompt":"hello world","return_token_strs":true})");
  ASSERT_EQ(reply.status, 200) << reply.body;
  const Json json = reply.json();
  EXPECT_EQ(json["count"], json["tokens"].size());
  EXPECT_EQ(json["max_model_len"], 65536);
  std::string joined;
  for (const Json& part : json["token_strs"]) joined += part.get<std::string>();
  EXPECT_EQ(joined, "hello world");
  const HttpReply back =
      Post(port_, "/detokenize", absl::StrCat("{\"tokens\":", json["tokens"].dump(), "}"));
  EXPECT_EQ(back.body, "{\"prompt\":\"hello world\"}");
  const Json chat =
      Post(port_, "/tokenize", R"({"messages":[{"role":"user","content":"hello world"}]})").json();
  EXPECT_GT(chat["count"], json["count"]);
  EXPECT_TRUE(chat["token_strs"].is_null());
  ExpectError(Post(port_, "/tokenize", R"({"model":"x","prompt":"y"})"), 404, "not served");
  ExpectError(Post(port_, "/detokenize", R"({"tokens":[99999]})"), 400, "99999");
  ExpectError(Post(port_, "/tokenize", R"({"prompt":5})"), 400, "prompt must be a string");
}

TEST_F(HttpServiceTest, PathsMethodsAndTypes) {
  ExpectError(Get("/v1/nothing"), 404, "there is no /v1/nothing");
  ExpectError(Get("/v1/models/"), 404, "");
  ExpectError(Post(port_, "/v1/embeddings", "{}"), 404, "/v1/embeddings");
  const HttpReply wrong = Get("/v1/completions");
  ExpectError(wrong, 405, "/v1/completions takes POST");
  EXPECT_EQ(wrong.Header("Allow"), "POST");
  EXPECT_EQ(Fetch(port_, "DELETE", "/ping").Header("Allow"), "GET, POST");
  EXPECT_EQ(Fetch(port_, "OPTIONS", "/v1/completions").status, 405);
  EXPECT_EQ(Fetch(port_, "BREW", "/v1/completions").status, 405);
  HttpClient form(port_);
  form.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
      "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 2\r\n\r\n{}");
  ExpectError(form.ReadReply(), 415, "application/json");
  ExpectError(Fetch(port_, "POST", "/v1/completions", "{}", "Content-Encoding: gzip\r\n"),
              415,
              "Content-Encoding");
  const HttpReply page = Fetch(port_, "OPTIONS", "/");
  EXPECT_EQ(page.Header("Access-Control-Allow-Origin"), "");  // no CORS
}

TEST_F(HttpServiceTest, BadBodies) {
  const std::string deep = std::string(5000, '[');
  for (const std::string& body : {std::string("{"),
                                  std::string("[1]"),
                                  std::string("nul"),
                                  std::string("{\"prompt\":\"\xff\"}"),
                                  "{\"prompt\":" + deep}) {
    for (const char* path : {"/v1/completions", "/v1/chat/completions", "/tokenize"}) {
      const HttpReply reply = Post(port_, path, body);
      ExpectError(reply, 400, "the body");
      EXPECT_EQ(reply.json()["error"]["code"], "invalid_json");
    }
  }
  ExpectError(Fetch(port_, "POST", "/v1/completions"), 400, "the body");
  // Large ones go another way, to the same end.
  ExpectError(Post(port_, "/v1/completions", "{\"prompt\":\"" + std::string(1 << 20, 'x')),
              400,
              "the body");
}

// What the front end refuses keeps the name the field has over HTTP.
TEST_F(HttpServiceTest, FieldsOutsideTheirLimits) {
  struct Bad {
    const char *more, *param, *message;
  };
  const Bad cases[] = {
      {R"("temperature":101)", "temperature", "temperature 101 is outside 0 to 100"},
      {R"("temperature":1e300)", "temperature", "temperature inf is outside 0 to 100"},
      {R"("top_p":1.5)", "top_p", "top_p 1.5 is outside 0 to 1"},
      {R"("top_p":0)", "top_p", "top_p must be more than 0"},
      {R"("top_k":-2)", "top_k", "top_k -2"},
      {R"("min_p":2)", "min_p", "min_p 2 is outside"},
      {R"("n":0)", "n", "n 0 is outside 1 to 16"},
      {R"("n":1000000)", "n", "n 1000000 is outside 1 to 16"},
      {R"("presence_penalty":3)", "presence_penalty", "presence_penalty 3 is outside"},
      {R"("frequency_penalty":-3)", "frequency_penalty", "frequency_penalty -3 is outside"},
      {R"("repetition_penalty":0)", "repetition_penalty", "repetition_penalty must be"},
      {R"("logit_bias":{"99999":1})", "logit_bias", "logit_bias names id 99999"},
      {R"("logit_bias":{"1":101})", "logit_bias", "logit_bias 101 is outside"},
      {R"("max_tokens":0)", "max_tokens", "max_tokens must be at least 1"},
      {R"("max_tokens":4294967295)", "max_tokens", "max_tokens 4294967295"},
      {R"("min_tokens":9,"max_tokens":5)", "min_tokens", "min_tokens 9 is more than"},
      {R"("stop":"")", "stop", "stop holds an empty string"},
      {R"("stop_token_ids":[99999])", "stop_token_ids", "stop_token_ids[0] is 99999"},
      {R"("prompt_logprobs":21)", "prompt_logprobs", "prompt_logprobs 21 is outside 0 to 20"},
      {R"("asynctls":{"budget":1})", "asynctls.budget", "asynctls.budget 1 is outside"},
      {R"("asynctls":{"blocks":1})", "asynctls.blocks", "asynctls.blocks 1 is below"},
      {R"("asynctls":{"tail":5000})", "asynctls.tail", "asynctls.tail 5000"},
      {R"("asynctls":{"selector":"bound"})", "asynctls.selector", "asynctls.selector bound is off"},
  };
  for (const Bad& bad : cases) {
    for (const bool chat : {true, false}) {
      const std::string prompt =
          chat ? R"("messages":[{"role":"user","content":"hi"}])" : R"("prompt":"hi there")";
      const HttpReply reply = Post(port_,
                                   chat ? "/v1/chat/completions" : "/v1/completions",
                                   absl::StrCat("{", prompt, ",", bad.more, "}"));
      ExpectError(reply, 400, bad.message);
      EXPECT_EQ(reply.json()["error"]["param"], bad.param) << reply.body;
      EXPECT_EQ(reply.json()["error"]["code"], "invalid_field") << reply.body;
    }
  }
  ExpectError(Post(port_, "/v1/completions", R"({"prompt":""})"), 400, "prompt is empty");
  ExpectError(Post(port_, "/v1/completions", R"({"prompt":[99999]})"), 400, "prompt[0] is 99999");
  ExpectError(Post(port_, "/v1/chat/completions", R"({"messages":[]})"), 400, "messages is empty");
  ExpectError(
      Post(port_, "/v1/chat/completions", R"({"messages":[{"role":"tool","content":"x"}]})"),
      400,
      "messages[0].role must be");
  ExpectError(Post(port_, "/v1/completions", R"({"prompt":"x","model":"y"})"), 404, "not served");
}

TEST_F(HttpServiceTest, HeadersThatMatter) {
  const std::string body = R"({"prompt":[1,2,3],"max_tokens":2,"temperature":0})";
  const HttpReply named = Fetch(port_, "POST", "/v1/completions", body, "X-Request-Id: my-id\r\n");
  EXPECT_EQ(named.json()["id"], "my-id");
  EXPECT_EQ(named.Header("X-Request-Id"), "my-id");
  const HttpReply too_long = Fetch(port_,
                                   "POST",
                                   "/v1/completions",
                                   body,
                                   absl::StrCat("X-Request-Id: ", std::string(129, 'x'), "\r\n"));
  EXPECT_TRUE(absl::StartsWith(too_long.json()["id"].get<std::string>(), "cmpl-"));
  for (const char* timeout : {"x", "0", "-1", "nan", "1e99"}) {
    ExpectError(Fetch(port_,
                      "POST",
                      "/v1/completions",
                      body,
                      absl::StrCat("X-Request-Timeout: ", timeout, "\r\n")),
                400,
                "X-Request-Timeout");
  }
  const HttpReply late =
      Fetch(port_, "POST", "/v1/completions", body, "X-Request-Timeout: 0.000001\r\n");
  EXPECT_EQ(late.status, 504) << late.body;
  EXPECT_EQ(late.json()["error"]["type"], "timeout_error");
}

TEST_F(HttpServiceTest, MetricsAndStatus) {
  Post(port_, "/v1/completions", R"({"prompt":[1,2,3],"max_tokens":2})");
  const HttpReply metrics = Get("/metrics");
  // What is refused counts too.
  Post(port_, "/v1/completions", "{");
  EXPECT_NE(Get("/metrics").body.find("asynctls_protocol_requests_total{protocol=\"openai\"} 2\n"),
            std::string::npos);
  EXPECT_EQ(metrics.Header("Content-Type"), "text/plain; version=0.0.4; charset=utf-8");
  const HttpReply status = Get("/status.json");
  EXPECT_EQ(status.Header("Cache-Control"), "no-store");
  EXPECT_EQ(status.json()["load"]["generation_tokens"], 2);
}

TEST(HttpServiceMetricsTest, HasTheNamesOfVllmWhereTheyAreAskedFor) {
  TestServer::Options options = HttpOptions();
  options.config.set_metrics_compat("vllm");
  TestServer server(options);
  const HttpReply metrics = Fetch(server.server().http_port(), "GET", "/metrics");
  EXPECT_NE(metrics.body.find("\nasynctls_requests_running "), std::string::npos);
  EXPECT_NE(metrics.body.find("\nvllm:num_requests_running{"), std::string::npos);
}

TEST_F(HttpServiceTest, ThePageIsSelfContained) {
  const HttpReply page = Get("/");
  EXPECT_EQ(page.status, 200);
  EXPECT_EQ(page.Header("Cache-Control"), "no-store");
  const std::string policy = page.Header("Content-Security-Policy");
  EXPECT_NE(policy.find("default-src 'none'"), std::string::npos);
  EXPECT_EQ(policy.find("unsafe"), std::string::npos);
  const size_t at = policy.find("nonce-") + 6;
  const std::string nonce = policy.substr(at, policy.find('\'', at) - at);
  EXPECT_GE(nonce.size(), 16u);
  EXPECT_NE(page.body.find(absl::StrCat("<script nonce=\"", nonce, "\">")), std::string::npos);
  EXPECT_EQ(page.body.find("{{"), std::string::npos);
  EXPECT_EQ(page.body.find("http://"), std::string::npos);
  EXPECT_EQ(page.body.find("https://"), std::string::npos);
  EXPECT_EQ(page.body.find("innerHTML"), std::string::npos);
  EXPECT_NE(Get("/").Header("Content-Security-Policy"), policy);
}

TEST_F(HttpServiceTest, DrainRefusesAndThenCloses) {
  HttpClient before(port_);
  before.SendRequest("GET", "/ping");
  EXPECT_EQ(before.ReadReply().status, 200);
  server_.server().Drain(absl::Seconds(5));
  EXPECT_EQ(before.ReadToEnd(), "");
}

}  // namespace
}  // namespace asynctls::testing
