// SPDX-License-Identifier: Apache-2.0
// The port: binding, connection limit, shutdown.
#include "server/http/http_server.h"

#include <gtest/gtest.h>

#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/testing/http_client.h"

namespace asynctls {
namespace {

using testing::Fetch;
using testing::HttpClient;
using testing::HttpReply;

std::unique_ptr<HttpServer> StartServer(const HttpLimits& limits, HttpHandler handler) {
  auto server = HttpServer::Start("127.0.0.1:0", limits, std::move(handler));
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

void Echo(const HttpRequest& request, const std::shared_ptr<HttpCall>& call) {
  HttpResponse response;
  response.body = request.body;
  call->Respond(std::move(response));
}

// Keeps calls until told to answer them.
class Holder {
 public:
  HttpHandler handler() {
    return [this](HttpRequest, std::shared_ptr<HttpCall> call) {
      std::lock_guard lock(mu_);
      calls_.push_back(std::move(call));
    };
  }
  void WaitFor(size_t calls) {
    while (true) {
      {
        std::lock_guard lock(mu_);
        if (calls_.size() >= calls) return;
      }
      absl::SleepFor(absl::Milliseconds(1));
    }
  }
  void AnswerAll() {
    std::lock_guard lock(mu_);
    for (const auto& call : calls_) call->Respond({});
    calls_.clear();
  }
  void DropAll() {
    std::lock_guard lock(mu_);
    calls_.clear();
  }

 private:
  std::mutex mu_;
  std::vector<std::shared_ptr<HttpCall>> calls_;
};

TEST(HttpServerTest, AnAddressThatCannotBeBoundIsNamed) {
  const auto server = StartServer({}, Echo);
  const std::string taken = absl::StrCat("127.0.0.1:", server->port());
  const auto second = HttpServer::Start(taken, {}, Echo);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(second.status().message().find(taken), std::string::npos);
  EXPECT_FALSE(HttpServer::Start("nonsense", {}, Echo).ok());
}

TEST(HttpServerTest, ConnectionsAreBounded) {
  HttpLimits limits;
  limits.connections = 3;
  const auto server = StartServer(limits, Echo);
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<HttpClient>(server->port()));
    clients[i]->SendRequest("POST", "/", "1");
    EXPECT_EQ(clients[i]->ReadReply().status, 200);
  }
  HttpClient one_more(server->port());
  const HttpReply refused = one_more.ReadReply();
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.Header("Retry-After"), "1");
  clients.pop_back();
  while (server->connections() == 3) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(Fetch(server->port(), "POST", "/", "2").body, "2");
}

TEST(HttpServerTest, ShutdownLetsAnswersFinish) {
  Holder holder;
  const auto server = StartServer({}, holder.handler());
  HttpClient idle(server->port()), busy(server->port());
  busy.SendRequest("GET", "/");
  holder.WaitFor(1);
  std::thread shutdown([&] { server->Shutdown(absl::Seconds(30)); });
  EXPECT_EQ(idle.ReadToEnd(), "");  // closed at once
  holder.AnswerAll();
  const HttpReply reply = busy.ReadReply();
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.Header("Connection"), "close");
  EXPECT_EQ(busy.ReadToEnd(), "");
  busy.Close();
  shutdown.join();
}

TEST(HttpServerTest, ShutdownTellsCallsThatTakeTooLong) {
  std::mutex mu;
  std::shared_ptr<HttpCall> held;
  const auto server = StartServer({}, [&](HttpRequest, std::shared_ptr<HttpCall> call) {
    std::lock_guard lock(mu);
    held = call;
    call->OnGone([&] {
      std::lock_guard lock(mu);
      held = nullptr;  // a generation that ends because its client has gone
    });
  });
  HttpClient client(server->port());
  client.SendRequest("GET", "/");
  while (true) {
    std::lock_guard lock(mu);
    if (held != nullptr) break;
  }
  server->Shutdown(absl::ZeroDuration());  // returns once the call is gone
  EXPECT_EQ(client.ReadReply().status, 0);
  std::lock_guard lock(mu);
  EXPECT_EQ(held, nullptr);
}

TEST(HttpServerTest, ManyConnectionsAtATime) {
  const auto server = StartServer({}, Echo);
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < 500; ++i) clients.push_back(std::make_unique<HttpClient>(server->port()));
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 500; ++i) clients[i]->SendRequest("POST", "/", absl::StrCat(i));
    for (int i = 0; i < 500; ++i) EXPECT_EQ(clients[i]->ReadReply().body, absl::StrCat(i));
  }
  EXPECT_EQ(server->connections(), 500);
}

TEST(HttpServerTest, ACallThatIsDroppedClosesItsConnection) {
  Holder holder;
  const auto server = StartServer({}, holder.handler());
  HttpClient client(server->port());
  client.SendRequest("GET", "/");
  holder.WaitFor(1);
  holder.DropAll();
  EXPECT_EQ(client.ReadToEnd(), "");
}

}  // namespace
}  // namespace asynctls
