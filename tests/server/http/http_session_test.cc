// SPDX-License-Identifier: Apache-2.0
// One connection, byte by byte: framing, limits, time limits, clients that leave or do not read.
#include "server/http/http_session.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/testing/http_client.h"

namespace asynctls {
namespace {

using testing::Fetch;
using testing::HttpClient;
using testing::HttpReply;

// Writes chunks of a megabyte until the client has gone; counts them.
struct Flood : std::enable_shared_from_this<Flood> {
  explicit Flood(std::shared_ptr<HttpCall> c, std::atomic<int>& s) : call(std::move(c)), sent(s) {}
  void Next() {
    call->Send(std::string(1 << 20, 'x'), [self = shared_from_this()](bool ok) {
      if (!ok) return;
      ++self->sent;
      self->Next();
    });
  }
  std::shared_ptr<HttpCall> call;
  std::atomic<int>& sent;
};

class HttpSessionTest : public ::testing::Test {
 protected:
  void Start(const HttpLimits& limits = {}) {
    auto server = HttpServer::Start(
        "127.0.0.1:0", limits, [this](HttpRequest request, std::shared_ptr<HttpCall> call) {
          Handle(std::move(request), std::move(call));
        });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  int port() const { return server_->port(); }

  void Handle(HttpRequest request, std::shared_ptr<HttpCall> call) {
    if (request.path == "/hold") {
      call->OnGone([this] { Release(); });
      std::lock_guard lock(mu_);
      held_ = std::move(call);
    } else if (request.path == "/stream") {
      HttpResponse head;
      head.content_type = "text/event-stream";
      call->StartStream(std::move(head));
      call->Send("one", [call](bool) { call->Send("two", [call](bool) { call->End("three"); }); });
    } else if (request.path == "/flood") {
      call->StartStream({});
      std::make_shared<Flood>(std::move(call), flooded_)->Next();
    } else {
      HttpResponse response;
      response.content_type = "text/plain";
      response.body = absl::StrCat(
          request.method, " ", request.path, " ", request.Header("x-test"), " ", request.body);
      call->Respond(std::move(response));
    }
  }
  void Release() {
    std::lock_guard lock(mu_);
    held_ = nullptr;
    released_ = true;
  }
  bool IsHeld() {
    std::lock_guard lock(mu_);
    return held_ != nullptr;
  }
  bool IsReleased() {
    std::lock_guard lock(mu_);
    return released_;
  }
  // False after ten seconds.
  template <class Predicate>
  static bool Eventually(Predicate predicate) {
    for (int i = 0; i < 10000; ++i) {
      if (predicate()) return true;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return false;
  }

  std::mutex mu_;
  std::shared_ptr<HttpCall> held_;
  bool released_ = false;
  std::atomic<int> flooded_{0};
  std::unique_ptr<HttpServer> server_;  // first to go
};

TEST_F(HttpSessionTest, AnswersByteForByte) {
  Start();
  HttpClient client(port());
  client.Send("GET /a%20b?q=1 HTTP/1.1\r\nHost: x\r\nX-Test: y\r\n\r\n");
  EXPECT_EQ(client.ReadTo("\r\n\r\n"),
            "HTTP/1.1 200 OK\r\nServer: asynctls\r\nContent-Type: text/plain\r\n"
            "X-Content-Type-Options: nosniff\r\nContent-Length: 11\r\n\r\n");
  EXPECT_EQ(client.ReadTo("y "), "GET /a b y ");
}

TEST_F(HttpSessionTest, StreamsInChunks) {
  Start();
  HttpClient client(port());
  client.Send("GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(client.ReadTo("\r\n\r\n"),
            "HTTP/1.1 200 OK\r\nServer: asynctls\r\nContent-Type: text/event-stream\r\n"
            "X-Content-Type-Options: nosniff\r\nTransfer-Encoding: chunked\r\n\r\n");
  EXPECT_EQ(client.ReadTo("0\r\n\r\n"), "3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n");
  client.SendRequest("POST", "/", "again");  // the connection is still good
  EXPECT_EQ(client.ReadReply().body, "POST /  again");
}

TEST_F(HttpSessionTest, StreamsToOldClientsUpToTheEnd) {
  Start();
  HttpClient client(port());
  client.Send("GET /stream HTTP/1.0\r\n\r\n");
  const std::string all = client.ReadToEnd();
  EXPECT_EQ(all.substr(all.find("\r\n\r\n")), "\r\n\r\nonetwothree");
  EXPECT_EQ(all.find("chunked"), std::string::npos);
}

TEST_F(HttpSessionTest, KeepsConnectionsAlive) {
  Start();
  HttpClient client(port());
  for (int i = 0; i < 20; ++i) {
    client.SendRequest("POST", "/", absl::StrCat(i));
    EXPECT_EQ(client.ReadReply().body, absl::StrCat("POST /  ", i));
  }
  EXPECT_EQ(server_->connections(), 1);
  client.SendRequest("GET", "/", "", "Connection: close\r\n");
  EXPECT_EQ(client.ReadReply().Header("Connection"), "close");
  EXPECT_EQ(client.ReadToEnd(), "");
}

TEST_F(HttpSessionTest, AnswersWhatIsSentAheadInOrder) {
  Start();
  HttpClient client(port());
  std::string all;
  for (int i = 0; i < 100; ++i) absl::StrAppend(&all, "GET /", i, " HTTP/1.1\r\nHost: x\r\n\r\n");
  client.Send(all);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(client.ReadReply().body, absl::StrCat("GET /", i, "  "));
}

TEST_F(HttpSessionTest, HeadHasNoBody) {
  Start();
  HttpClient client(port());
  client.Send("HEAD /x HTTP/1.1\r\nHost: x\r\n\r\nGET /y HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(client.ReadReply(/*no_body=*/true).Header("Content-Length"), "9");
  EXPECT_EQ(client.ReadReply().body, "GET /y  ");
}

TEST_F(HttpSessionTest, TakesBodiesInPiecesAndChunks) {
  Start();
  HttpClient client(port());
  for (char c : std::string("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")) {
    client.Send(std::string(1, c));
  }
  EXPECT_EQ(client.ReadReply().body, "POST /  hello");
  client.Send(
      "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
  EXPECT_EQ(client.ReadReply().body, "POST /  abcde");
  const std::string big(3 << 20, 'b');
  client.SendRequest("POST", "/", big);
  EXPECT_EQ(client.ReadReply().body, "POST /  " + big);
}

TEST_F(HttpSessionTest, SaysContinueToThoseWhoWait) {
  Start();
  HttpClient client(port());
  client.Send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(client.ReadTo("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("ok");
  EXPECT_EQ(client.ReadReply().body, "POST /  ok");
}

TEST_F(HttpSessionTest, RefusesWhatIsTooLarge) {
  HttpLimits limits;
  limits.header_bytes = 1000;
  limits.body_bytes = 1000;
  Start(limits);
  const std::string long_header = absl::StrCat("X-Test: ", std::string(2000, 'x'), "\r\n");
  EXPECT_EQ(Fetch(port(), "GET", "/", "", long_header).status, 431);
  EXPECT_EQ(Fetch(port(), "GET", absl::StrCat("/", std::string(2000, 'x'))).status, 431);
  std::string many;
  for (int i = 0; i < 100; ++i) absl::StrAppend(&many, "X-", i, ": a value\r\n");
  EXPECT_EQ(Fetch(port(), "GET", "/", "", many).status, 431);
  EXPECT_EQ(Fetch(port(), "POST", "/", std::string(1001, 'x')).status, 413);
  EXPECT_EQ(Fetch(port(), "POST", "/", std::string(1000, 'x')).status, 200);
  // Told before the body is there, or while it is.
  HttpClient huge(port()), chunked(port());
  huge.Send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n");
  EXPECT_EQ(huge.ReadReply().status, 413);
  chunked.Send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n");
  chunked.Send(std::string(2000, 'x'));
  EXPECT_EQ(chunked.ReadReply().status, 413);
}

TEST_F(HttpSessionTest, BodiesAreBoundedTogether) {
  HttpLimits limits;
  limits.body_bytes = 1000;
  limits.all_body_bytes = 1500;
  Start(limits);
  HttpClient first(port());
  first.Send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n");
  // The server has seen the header once it answers what another connection sends.
  HttpReply second;
  EXPECT_TRUE(Eventually([&] {
    second = Fetch(port(), "POST", "/", std::string(900, 'x'));
    return second.status == 503;
  }));
  EXPECT_TRUE(second.json()["error"]["message"].is_string());
  first.Send(std::string(900, 'x'));
  EXPECT_EQ(first.ReadReply().status, 200);
  EXPECT_TRUE(
      Eventually([&] { return Fetch(port(), "POST", "/", std::string(900, 'x')).status == 200; }));
}

TEST_F(HttpSessionTest, RefusesWhatIsNoRequest) {
  Start();
  const std::string cases[] = {
      "nonsense\r\n\r\n",
      "GET /\r\n\r\n",
      "GET / HTTP/9.9\r\n\r\n",
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + "\r\n\r\n",
      std::string(300, '\0') + "\r\n\r\n",
      "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
      "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
      "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
      "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
      "GET / HTTP/1.1\r\nno colon\r\n\r\n",
      "GET / HTTP/1.1\r\nA\x01: b\r\n\r\n",
  };
  for (const std::string& bytes : cases) {
    HttpClient client(port());
    client.Send(bytes);
    const HttpReply reply = client.ReadReply();
    EXPECT_EQ(reply.status, 400) << bytes;
    EXPECT_EQ(reply.Header("Connection"), "close") << bytes;
    EXPECT_EQ(reply.json()["error"]["type"], "invalid_request_error") << bytes;
    EXPECT_EQ(client.ReadToEnd(), "") << bytes;
  }
  EXPECT_EQ(Fetch(port(), "GET", "/").status, 200);
}

TEST_F(HttpSessionTest, ClosesConnectionsThatDawdle) {
  HttpLimits limits;
  limits.idle = absl::Milliseconds(300);
  limits.header = absl::Milliseconds(300);
  limits.body = absl::Milliseconds(300);
  Start(limits);
  HttpClient idle(port()), header(port()), body(port()), answered(port());
  header.Send("GET / HTTP/1.1\r\nX-");
  body.Send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
  answered.SendRequest("GET", "/hold");
  EXPECT_EQ(idle.ReadToEnd(), "");
  EXPECT_EQ(header.ReadToEnd(), "");
  EXPECT_EQ(body.ReadToEnd(), "");
  EXPECT_TRUE(IsHeld());  // an answer may take as long as it takes
}

TEST_F(HttpSessionTest, AByteNowAndThenIsNotEnough) {
  HttpLimits limits;
  limits.header = absl::Milliseconds(300);
  Start(limits);
  HttpClient client(port());
  client.Send("GET / HTTP/1.1\r\n");
  // Ends because the connection is closed: the header would never be complete.
  while (client.Send("X-A: b\r\n")) absl::SleepFor(absl::Milliseconds(20));
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; }));
}

TEST_F(HttpSessionTest, NoticesAClientThatLeaves) {
  Start();
  {
    HttpClient client(port());
    client.SendRequest("GET", "/hold");
    ASSERT_TRUE(Eventually([&] { return IsHeld(); }));
    client.Send("GET /ahead HTTP/1.1\r\n\r\n");  // does not hide that it leaves
  }
  EXPECT_TRUE(Eventually([&] { return IsReleased(); }));
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; }));
}

TEST_F(HttpSessionTest, AReaderThatStopsHoldsUpItsOwnWriterOnly) {
  HttpLimits limits;
  limits.write = absl::Milliseconds(500);
  Start(limits);
  HttpClient client(port(), /*receive_buffer=*/4096);
  client.Send("GET /flood HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 1; }));
  EXPECT_EQ(Fetch(port(), "GET", "/").status, 200);
  // Sockets hold a few megabytes; the rest waits for the reader, who is given up after `write`.
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; }));
  EXPECT_LT(flooded_, 64);
}

}  // namespace
}  // namespace asynctls
