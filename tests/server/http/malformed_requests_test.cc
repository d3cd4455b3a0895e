// SPDX-License-Identifier: Apache-2.0
// Ten thousand malformed requests over HTTP: the server lives, no block leaks, and the well-formed
// requests among them are answered as ever.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/testing/http_client.h"
#include "tests/testing/malformed.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

constexpr int kThreads = 4;
constexpr int kRequestsEach = 2500;
constexpr int kNeighbourEvery = 10;

// Short replies, so that a request that happens to be valid takes no time.
TestServer::Options ShortReplies() {
  TestServer::Options options = TestServer::Defaults();
  options.config.set_http_listen("127.0.0.1:0");
  options.config.set_max_context(192);
  options.fake.max_context = 192;
  return options;
}

struct Target {
  const char* path;
  const char* valid;
};
constexpr Target kTargets[] = {
    {"/v1/chat/completions",
     R"({"messages":[{"role":"user","content":"hi"}],"max_tokens":3,"stop":"end","stream":true})"},
    {"/v1/completions", R"({"prompt":[1,2,3],"max_tokens":3,"top_p":0.9,"n":2,"logprobs":1})"},
    {"/tokenize", R"({"prompt":"hello","return_token_strs":true})"},
    {"/detokenize", R"({"tokens":[1,2,3]})"},
};
const std::vector<std::string>& Members() {
  static const std::vector<std::string> members = {"model",
                                                   "prompt",
                                                   "messages",
                                                   "role",
                                                   "content",
                                                   "max_tokens",
                                                   "min_tokens",
                                                   "temperature",
                                                   "top_p",
                                                   "top_k",
                                                   "min_p",
                                                   "n",
                                                   "seed",
                                                   "stop",
                                                   "logit_bias",
                                                   "presence_penalty",
                                                   "logprobs",
                                                   "top_logprobs",
                                                   "echo",
                                                   "prompt_logprobs",
                                                   "stop_token_ids",
                                                   "stream",
                                                   "stream_options",
                                                   "include_usage",
                                                   "response_format",
                                                   "type",
                                                   "asynctls",
                                                   "budget",
                                                   "blocks",
                                                   "tokens",
                                                   "request_id",
                                                   "priority",
                                                   "tools",
                                                   "tool_choice",
                                                   "user",
                                                   "chat_template_kwargs",
                                                   "best_of",
                                                   "cache_salt",
                                                   "ignore_eos",
                                                   "skip_special_tokens",
                                                   "service_tier",
                                                   "enable_thinking"};
  return members;
}

Json RandomJson(Rng& rng, int depth) {
  switch (rng() % (depth > 0 ? 8 : 6)) {
    case 0:
      return nullptr;
    case 1:
      return rng() % 2 == 0;
    case 2:
      return RandomInt<int64_t>(rng);
    case 3:
      return RandomInt<uint64_t>(rng);
    case 4:
      return RandomReal(rng);  // null in JSON where it is not finite
    case 5:
      return RandomText(rng);
    case 6: {
      Json list = Json::array();
      for (uint64_t i = rng() % 4; i > 0; --i) list.push_back(RandomJson(rng, depth - 1));
      return list;
    }
    default: {
      Json object = Json::object();
      for (uint64_t i = rng() % 4; i > 0; --i) {
        object[Pick(Members(), rng)] = RandomJson(rng, depth - 1);
      }
      return object;
    }
  }
}

// A valid body with broken bytes, or with random members.
std::string MalformedBody(const Target& target, Rng& rng) {
  if (rng() % 2 == 0) return Mutate(target.valid, rng);
  Json body = Json::parse(target.valid);
  for (uint64_t i = 1 + rng() % 3; i > 0; --i) body[Pick(Members(), rng)] = RandomJson(rng, 3);
  return body.dump();
}

// How often each status came; 0 counts requests whose bytes were broken outside of the body, which
// get no answer before the client leaves.
using Tally = std::map<int, int>;

void SendBrokenBytes(int port, const Target& target, Rng& rng) {
  HttpClient client(port);
  client.Send(Mutate(absl::StrCat("POST ",
                                  target.path,
                                  " HTTP/1.1\r\nHost: test\r\nContent-Length: ",
                                  std::string(target.valid).size(),
                                  "\r\n\r\n",
                                  target.valid),
                     rng));
}

Tally Flood(TestServer& server, uint64_t seed) {
  const int port = server.server().http_port();
  Rng rng(seed);
  Tally tally;
  auto client = std::make_unique<HttpClient>(port);
  for (int i = 0; i < kRequestsEach; ++i) {
    const Target& target = kTargets[rng() % std::size(kTargets)];
    if (i % 8 == 0) {
      SendBrokenBytes(port, target, rng);
      ++tally[0];
      continue;
    }
    const std::string body = MalformedBody(target, rng);
    client->SendRequest("POST", target.path, body);
    const HttpReply reply = client->ReadReply();
    ++tally[reply.status];
    if (reply.status != 200) {
      EXPECT_TRUE(reply.json()["error"].contains("message")) << body << reply.head;
    }
    if (reply.Header("Connection") == "close") client = std::make_unique<HttpClient>(port);
    if (i % kNeighbourEvery != 0) continue;
    const HttpReply neighbour = Post(
        port,
        "/v1/completions",
        R"({"prompt":[7,8,9],"max_tokens":4,"temperature":0,"ignore_eos":true,"priority":-100})");
    EXPECT_EQ(neighbour.status, 200) << neighbour.body;
    const auto expected = server.tokenizer().Decode(ExpectedReply({7, 8, 9}, 4, kDemoVocab), true);
    EXPECT_EQ(neighbour.json()["choices"][0]["text"], *expected);
  }
  return tally;
}

TEST(HttpMalformedRequestsTest, TenThousand) {
  TestServer server(ShortReplies());
  std::mutex mu;
  Tally all;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const Tally tally = Flood(server, 40 + t);
      std::lock_guard lock(mu);
      for (const auto& [status, count] : tally) all[status] += count;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(server.WaitIdle());
  EXPECT_EQ(server.engine().snapshot().blocks_used, 0);
  int total = 0;
  for (const auto& [status, count] : all) {
    total += count;
    EXPECT_LT(status, 500) << count;
  }
  EXPECT_EQ(total, kThreads * kRequestsEach);
  EXPECT_GT(all[400], total / 4);
  EXPECT_GT(all[200], total / 100);
  EXPECT_TRUE(server.server().UpdateHealth());
}

}  // namespace
}  // namespace asynctls::testing
