// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/front_door.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "engine/base/queue.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// A client's socket.
class Socket {
 public:
  explicit Socket(int port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~Socket() { close(fd_); }

  void Send(const std::string& bytes) {
    EXPECT_EQ(send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  // Until the other side closes.
  std::string ReadAll() {
    std::string out;
    char buffer[1024];
    for (ssize_t size; (size = recv(fd_, buffer, sizeof(buffer), 0)) > 0;) out.append(buffer, size);
    return out;
  }

 private:
  const int fd_;
};

TEST(GreetingTest, IsKnownByItsFirstBytes) {
  EXPECT_EQ(GreetingOf("P"), Greeting::kIncomplete);
  EXPECT_EQ(GreetingOf("PR"), Greeting::kIncomplete);
  EXPECT_EQ(GreetingOf("PRI"), Greeting::kHttp2);
  EXPECT_EQ(GreetingOf("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Greeting::kHttp2);
  for (const char* http : {"G", "GET / HTTP/1.1", "POST", "PUT", "PATCH", "HEAD", "PRIX"}) {
    EXPECT_EQ(GreetingOf(http), Greeting::kHttp1) << http;
  }
  EXPECT_EQ(GreetingOf("\x16\x03\x01"), Greeting::kOther);  // TLS
  EXPECT_EQ(GreetingOf(absl::string_view("\0", 1)), Greeting::kOther);
  EXPECT_EQ(GreetingOf("get"), Greeting::kOther);
}

class FrontDoorTest : public ::testing::Test {
 protected:
  void Open(uint32_t max_connections, const std::string& http_hint = "") {
    FrontDoor::Options options;
    options.listen = "127.0.0.1:0";
    options.max_connections = max_connections;
    options.patience = absl::Milliseconds(200);
    options.http_hint = http_hint;
    auto door = FrontDoor::Listen(std::move(options));
    ASSERT_TRUE(door.ok()) << door.status();
    door_ = *std::move(door);
    door_->Open([this](int fd) { handed_on_.Push(std::move(fd)); });
  }
  // The next socket that was handed on.
  int Next() { return handed_on_.PopAll(absl::Now() + absl::Seconds(10)).at(0); }

  Queue<int> handed_on_;
  std::unique_ptr<FrontDoor> door_;
};

TEST_F(FrontDoorTest, Http2IsHandedOnUntouchedHoweverItArrives) {
  Open(10);
  Socket client(door_->port());
  for (const char* piece : {"P", "R", "I * HTTP/2.0"}) client.Send(piece);
  const int fd = Next();
  char bytes[64];
  std::string got;
  while (got.size() < 14) {
    const ssize_t size = recv(fd, bytes, sizeof(bytes), 0);
    if (size > 0) got.append(bytes, size);
  }
  EXPECT_EQ(got, "PRI * HTTP/2.0");
  close(fd);
  EXPECT_EQ(client.ReadAll(), "");
}

TEST_F(FrontDoorTest, SmallMessagesAreNotHeldBack) {
  Open(10);
  Socket client(door_->port());
  client.Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  const int fd = Next();
  int no_delay = 0;
  socklen_t size = sizeof(no_delay);
  ASSERT_EQ(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &no_delay, &size), 0);
  EXPECT_NE(no_delay, 0);
  close(fd);
}

TEST_F(FrontDoorTest, PlainHttpIsToldWhereItCameTo) {
  Open(10);
  Socket client(door_->port());
  client.Send("GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n");
  const std::string answer = client.ReadAll();
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 426 Upgrade Required\r\n"));
  EXPECT_THAT(answer, HasSubstr("speaks gRPC"));
  EXPECT_THAT(answer, HasSubstr("use a gRPC client, or start the server with --http-listen"));
}

TEST_F(FrontDoorTest, PlainHttpIsToldWhereHttpIsServed) {
  Open(10, "host:8000");
  Socket client(door_->port());
  client.Send("GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadAll(), HasSubstr("HTTP is served on host:8000"));
}

TEST_F(FrontDoorTest, OtherProtocolsAndSilenceAreSentAway) {
  Open(10);
  Socket tls(door_->port());
  tls.Send("\x16\x03\x01");
  EXPECT_EQ(tls.ReadAll(), "");
  Socket silent(door_->port());
  EXPECT_EQ(silent.ReadAll(), "");
  Socket slow(door_->port());
  slow.Send("P");
  EXPECT_EQ(slow.ReadAll(), "");
}

TEST_F(FrontDoorTest, ConnectionsAreBoundedWhileTheyAreOpen) {
  Open(2);
  auto first = std::make_unique<Socket>(door_->port());
  first->Send("PRI");
  const int fd = Next();
  Socket second(door_->port());
  second.Send("PRI");
  const int second_fd = Next();
  Socket third(door_->port());
  EXPECT_EQ(third.ReadAll(), "");  // closed at once
  close(fd);
  Socket fourth(door_->port());
  fourth.Send("PRI");
  close(Next());
  close(second_fd);
}

TEST_F(FrontDoorTest, ATakenAddressIsAnError) {
  Open(1);
  FrontDoor::Options options;
  options.listen = absl::StrCat("127.0.0.1:", door_->port());
  const auto second = FrontDoor::Listen(options);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(options.listen));
}

TEST(FrontDoorServerTest, GrpcAndHttpMeetOnOnePort) {
  TestServer server;
  EXPECT_TRUE(server.Generate(IdsRequest({1, 2}, 3)).status.ok());
  Socket client(server.server().grpc_port());
  client.Send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}");
  EXPECT_THAT(client.ReadAll(), HasSubstr("426"));
  EXPECT_TRUE(server.Generate(IdsRequest({1, 2}, 3)).status.ok());
}

}  // namespace
}  // namespace asynctls::testing
