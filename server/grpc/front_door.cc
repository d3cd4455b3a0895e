// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/front_door.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/host_port.h"
#include "engine/base/logging.h"

namespace asynctls {
namespace {

constexpr absl::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr int kBacklog = 1024;
constexpr int kTickMs = 500;               // how often silent connections are looked at
constexpr size_t kMaxRequestBytes = 8192;  // of an HTTP/1 request read before it is answered

absl::Status Failed(const std::string& listen, const char* what) {
  return absl::UnavailableError(
      absl::StrCat("listen ", listen, " cannot be bound: ", what, ": ", std::strerror(errno)));
}

// The inode of an open socket; 0 for anything else.
uint64_t SocketInode(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 && S_ISSOCK(info.st_mode) ? info.st_ino : 0;
}

absl::StatusOr<int> BoundSocket(const std::string& listen) {
  const auto address = ParseHostPort("listen", listen);
  if (!address.ok()) return address.status();
  std::string host = address->first;
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(host.c_str(), absl::StrCat(address->second).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat("listen ", listen, " cannot be bound: ", gai_strerror(error)));
  }
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const int on = 1;
  bool bound = fd >= 0;
  if (bound) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  // Inherited by what is accepted. gRPC sets it only on sockets that it accepts itself; without it
  // a second small message waits 40 ms for the client's delayed acknowledgement of the first.
  if (bound) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  bound = bound && bind(fd, found->ai_addr, found->ai_addrlen) == 0 && ::listen(fd, kBacklog) == 0;
  freeaddrinfo(found);
  if (bound) return fd;
  const absl::Status status = Failed(listen, "bind");
  if (fd >= 0) close(fd);
  return status;
}

int PortOf(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

void Watch(int epoll, int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

}  // namespace

Greeting GreetingOf(absl::string_view bytes) {
  const absl::string_view begin = bytes.substr(0, kPreface.size());
  if (absl::StartsWith(kPreface, begin)) {
    // "PRI" is no method of HTTP/1.
    return begin.size() < 3 ? Greeting::kIncomplete : Greeting::kHttp2;
  }
  return absl::ascii_isupper(bytes.front()) ? Greeting::kHttp1 : Greeting::kOther;
}

absl::StatusOr<std::unique_ptr<FrontDoor>> FrontDoor::Listen(Options options) {
  auto door = absl::WrapUnique(new FrontDoor(std::move(options)));
  absl::StatusOr<int> listener = BoundSocket(door->options_.listen);
  if (!listener.ok()) return listener.status();
  door->listener_ = *listener;
  door->port_ = PortOf(*listener);
  door->epoll_ = epoll_create1(EPOLL_CLOEXEC);
  door->stop_ = eventfd(0, EFD_CLOEXEC);
  if (door->epoll_ < 0 || door->stop_ < 0) return Failed(door->options_.listen, "epoll");
  return door;
}

FrontDoor::~FrontDoor() {
  Close();
  for (int fd : {listener_, epoll_, stop_}) {
    if (fd >= 0) close(fd);
  }
}

void FrontDoor::Open(absl::AnyInvocable<void(int fd)> hand_on) {
  hand_on_ = std::move(hand_on);
  Watch(epoll_, listener_, EPOLLIN);
  Watch(epoll_, stop_, EPOLLIN);
  thread_ = std::thread([this] { Run(); });
}

void FrontDoor::Close() {
  if (!thread_.joinable()) return;
  eventfd_write(stop_, 1);
  thread_.join();
  close(std::exchange(listener_, -1));
}

void FrontDoor::Run() {
  std::array<epoll_event, 64> events;
  for (bool open = true; open;) {
    const int count = epoll_wait(epoll_, events.data(), events.size(), kTickMs);
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      if (fd == stop_) {
        open = false;
      } else if (fd == listener_) {
        Accept();
      } else if (silent_.count(fd) > 0) {
        Look(fd);
      }
    }
    DropSilent(absl::Now());
  }
  DropSilent(absl::InfiniteFuture());
}

void FrontDoor::Accept() {
  while (true) {
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;  // no more, or out of descriptors: the next tick tries again
    if (Full()) {
      spdlog::warn("connection refused: {} are open (max_connections)", options_.max_connections);
      close(fd);
      continue;
    }
    silent_[fd] = absl::Now() + options_.patience;
    Watch(epoll_, fd, EPOLLIN | EPOLLRDHUP | EPOLLET);
    Look(fd);
  }
}

// Sockets given away are closed by their new owner; their number is then free, or another socket's.
bool FrontDoor::Full() {
  const auto count = [this] { return silent_.size() + handed_on_.size(); };
  if (count() < options_.max_connections) return false;
  std::erase_if(handed_on_,
                [](const auto& entry) { return SocketInode(entry.first) != entry.second; });
  return count() >= options_.max_connections;
}

void FrontDoor::Look(int fd) {
  char bytes[kPreface.size()];
  const ssize_t size = recv(fd, bytes, sizeof(bytes), MSG_PEEK);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size <= 0) {  // closed
    Forget(fd);
    close(fd);
    return;
  }
  switch (GreetingOf(absl::string_view(bytes, size))) {
    case Greeting::kIncomplete:
      return;
    case Greeting::kHttp2:
      Forget(fd);
      handed_on_[fd] = SocketInode(fd);
      hand_on_(fd);
      return;
    case Greeting::kHttp1:
      SendAway(fd);
      break;
    case Greeting::kOther:
      break;
  }
  Forget(fd);
  close(fd);
}

// What does not fit into the socket's buffer is lost; the buffer is empty and the text is short.
void FrontDoor::SendAway(int fd) {
  char request[kMaxRequestBytes];  // unread bytes would turn close() into a reset
  while (recv(fd, request, sizeof(request), 0) > 0) continue;
  const std::string body = absl::StrCat(
      R"({"error":{"type":"invalid_request_error","message":"this port speaks gRPC over HTTP/2 )",
      "without TLS; ",
      options_.http_hint.empty() ? "use a gRPC client, or start the server with --http-listen"
                                 : absl::StrCat("HTTP is served on ", options_.http_hint),
      R"("}})",
      "\n");
  const std::string answer = absl::StrCat(
      "HTTP/1.1 426 Upgrade Required\r\nUpgrade: h2c\r\nConnection: close, Upgrade\r\n"
      "Content-Type: application/json\r\nContent-Length: ",
      body.size(),
      "\r\n\r\n",
      body);
  if (send(fd, answer.data(), answer.size(), MSG_NOSIGNAL) < 0) {
    spdlog::debug("an HTTP client left before it was answered");
  }
  shutdown(fd, SHUT_WR);
}

void FrontDoor::Forget(int fd) {
  epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
  silent_.erase(fd);
}

void FrontDoor::DropSilent(absl::Time now) {
  for (auto it = silent_.begin(); it != silent_.end();) {
    const auto [fd, until] = *it++;
    if (until > now) continue;
    Forget(fd);
    close(fd);
  }
}

}  // namespace asynctls
