// SPDX-License-Identifier: Apache-2.0
// A plain HTTP/1.1 client on a blocking socket, for tests that look at every byte.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/check.h"
#include "engine/base/json.h"

namespace asynctls::testing {

struct HttpReply {
  int status = 0;  // 0: the connection ended before a whole answer
  std::string head;
  std::string body;  // with chunks put together

  // Empty where there is none.
  std::string Header(const std::string& name) const {
    for (absl::string_view line : absl::StrSplit(head, "\r\n")) {
      const std::pair<absl::string_view, absl::string_view> field =
          absl::StrSplit(line, absl::MaxSplits(": ", 1));
      if (absl::EqualsIgnoreCase(field.first, name)) return std::string(field.second);
    }
    return "";
  }
  // Discarded where the body is no JSON.
  Json json() const { return Json::parse(body, nullptr, /*allow_exceptions=*/false); }
  // The data of the events of a stream.
  std::vector<std::string> events() const {
    std::vector<std::string> out;
    for (absl::string_view event : absl::StrSplit(body, "\n\n", absl::SkipEmpty())) {
      ASYNCTLS_CHECK(absl::StartsWith(event, "data: "));
      out.emplace_back(event.substr(6));
    }
    return out;
  }
};

class HttpClient {
 public:
  // `receive_buffer` > 0: of that many bytes, for readers that are slow.
  explicit HttpClient(int port, int receive_buffer = 0) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    ASYNCTLS_CHECK(fd_ >= 0);
    if (receive_buffer > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    const timeval patience = {30, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    const int on = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASYNCTLS_CHECK(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  }
  ~HttpClient() { Close(); }
  HttpClient(const HttpClient&) = delete;

  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

  // False: the other side has closed.
  bool Send(absl::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  bool SendRequest(const std::string& method,
                   const std::string& path,
                   const std::string& body = "",
                   const std::string& headers = "") {
    const std::string json = body.empty() ? "" : "Content-Type: application/json\r\n";
    return Send(absl::StrCat(method,
                             " ",
                             path,
                             " HTTP/1.1\r\nHost: test\r\n",
                             json,
                             headers,
                             "Content-Length: ",
                             body.size(),
                             "\r\n\r\n",
                             body));
  }

  // Up to and with `mark`; what came before the end where it does not come.
  std::string ReadTo(const std::string& mark) {
    size_t at = in_.find(mark);
    while (at == std::string::npos && Receive()) at = in_.find(mark);
    return Take(at == std::string::npos ? in_.size() : at + mark.size());
  }
  std::string ReadToEnd() {
    while (Receive()) continue;
    return Take(in_.size());
  }

  // One answer; `no_body` to HEAD.
  HttpReply ReadReply(bool no_body = false) {
    HttpReply reply;
    reply.head = ReadTo("\r\n\r\n");
    const std::vector<std::string> words = absl::StrSplit(reply.head, ' ');
    if (words.size() < 2 || !absl::EndsWith(reply.head, "\r\n\r\n")) return reply;
    int status = 0;
    ASYNCTLS_CHECK(absl::SimpleAtoi(words[1], &status));
    size_t length = 0;
    if (!reply.Header("Transfer-Encoding").empty()) {
      if (!ReadChunks(reply.body)) return reply;
    } else if (absl::SimpleAtoi(reply.Header("Content-Length"), &length)) {
      while (!no_body && in_.size() < length && Receive()) continue;
      if (!no_body) reply.body = Take(std::min(length, in_.size()));
      if (!no_body && reply.body.size() < length) return reply;
    } else {
      reply.body = ReadToEnd();
    }
    reply.status = status;
    return reply;
  }

 private:
  bool Receive() {
    char buffer[65536];
    const ssize_t n = recv(fd_, buffer, sizeof(buffer), 0);
    if (n > 0) in_.append(buffer, static_cast<size_t>(n));
    return n > 0;
  }
  std::string Take(size_t n) {
    std::string out = in_.substr(0, n);
    in_.erase(0, n);
    return out;
  }
  bool ReadChunks(std::string& body) {
    while (true) {
      const std::string line = ReadTo("\r\n");
      if (line.size() < 3) return false;
      const size_t size = std::stoul(line, nullptr, 16);
      while (in_.size() < size + 2) {
        if (!Receive()) return false;
      }
      body += Take(size);
      if (Take(2) != "\r\n") return false;
      if (size == 0) return true;
    }
  }

  int fd_;
  std::string in_;
};

// One request on a connection of its own.
inline HttpReply Fetch(int port,
                       const std::string& method,
                       const std::string& path,
                       const std::string& body = "",
                       const std::string& headers = "") {
  HttpClient client(port);
  client.SendRequest(method, path, body, absl::StrCat(headers, "Connection: close\r\n"));
  return client.ReadReply(method == "HEAD");
}
inline HttpReply Post(int port, const std::string& path, const std::string& body) {
  return Fetch(port, "POST", path, body);
}

}  // namespace asynctls::testing
