// SPDX-License-Identifier: Apache-2.0
// Http2Client: a client that speaks HTTP/2 by hand, to do what no gRPC library does: break off,
// lie about lengths, flood, never read. RFC 9113; headers are HPACK literals (RFC 7541 6.2.2).
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "google/protobuf/message_lite.h"

namespace asynctls::testing {

class Http2Client {
 public:
  enum Frame : uint8_t {
    kData = 0,
    kHeaders = 1,
    kReset = 3,
    kSettings = 4,
    kPing = 6,
    kGoAway = 7,
    kWindowUpdate = 8,
  };
  static constexpr uint8_t kEndStream = 1, kEndHeaders = 4;

  explicit Http2Client(int port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~Http2Client() { Close(); }

  // The preface and a SETTINGS frame. `window`: bytes the server may send on each stream.
  void Greet(uint32_t window = 65535) {
    Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    SendFrame(kSettings, 0, 0, std::string("\x00\x04", 2) + Big32(window));
  }

  // False: the server has closed the connection.
  bool Send(const std::string& bytes) {
    size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t size = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (size <= 0) return false;
      sent += size;
    }
    return true;
  }
  bool SendFrame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
    std::string frame = Big32(static_cast<uint32_t>(payload.size())).substr(1);
    frame += static_cast<char>(type);
    frame += static_cast<char>(flags);
    return Send(frame + Big32(stream) + payload);
  }

  using Headers = std::vector<std::pair<std::string, std::string>>;
  static Headers Call(const std::string& path) {
    return {{":method", "POST"},
            {":scheme", "http"},
            {":path", path},
            {":authority", "localhost"},
            {"content-type", "application/grpc"},
            {"te", "trailers"}};
  }
  bool SendHeaders(uint32_t stream, const Headers& headers, uint8_t more_flags = 0) {
    std::string block;
    for (const auto& [name, value] : headers) {
      block += '\0';
      block += Length(name.size()) + name + Length(value.size()) + value;
    }
    return SendFrame(kHeaders, kEndHeaders | more_flags, stream, block);
  }
  // A whole message, and with it the end of what the client says.
  bool SendMessage(uint32_t stream, const google::protobuf::MessageLite& message) {
    const std::string bytes = message.SerializeAsString();
    std::string data("\0", 1);
    data += Big32(static_cast<uint32_t>(bytes.size()));
    data += bytes;
    for (size_t at = 0; at < data.size(); at += kMaxFrame) {
      const bool last = at + kMaxFrame >= data.size();
      if (!SendFrame(kData, last ? kEndStream : 0, stream, data.substr(at, kMaxFrame))) {
        return false;
      }
    }
    return true;
  }

  // Reads and forgets until the server closes; false after `milliseconds`.
  bool WaitForClose(int milliseconds = 10000) {
    char buffer[65536];
    pollfd event{fd_, POLLIN, 0};
    while (poll(&event, 1, milliseconds) > 0) {
      if (recv(fd_, buffer, sizeof(buffer), 0) <= 0) return true;
    }
    return false;
  }
  // Types of the frames that come within `milliseconds` of silence.
  std::vector<uint8_t> ReadFrames(int milliseconds) {
    std::string bytes;
    char buffer[65536];
    pollfd event{fd_, POLLIN, 0};
    while (poll(&event, 1, milliseconds) > 0) {
      const ssize_t size = recv(fd_, buffer, sizeof(buffer), 0);
      if (size <= 0) break;
      bytes.append(buffer, size);
    }
    std::vector<uint8_t> types;
    for (size_t at = 0; at + 9 <= bytes.size();) {
      const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[at + i]); };
      types.push_back(byte(3));
      at += 9 + (byte(0) << 16 | byte(1) << 8 | byte(2));
    }
    return types;
  }

  // As when the client's process dies: a TCP reset, no word in HTTP/2.
  void Crash() {
    const linger now{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    Close();
  }
  void Close() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }

  static std::string Big32(uint32_t value) {
    const uint32_t big = htonl(value);
    return std::string(reinterpret_cast<const char*>(&big), sizeof(big));
  }

 private:
  static constexpr size_t kMaxFrame = 16384;

  // HPACK integer with a prefix of 7 bits.
  static std::string Length(size_t value) {
    if (value < 127) return std::string(1, static_cast<char>(value));
    std::string out(1, 127);
    for (value -= 127; value >= 128; value /= 128) out += static_cast<char>(value % 128 + 128);
    return out + static_cast<char>(value);
  }

  int fd_;
};

}  // namespace asynctls::testing
