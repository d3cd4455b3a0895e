// SPDX-License-Identifier: Apache-2.0
// FrontDoor: the listening socket before gRPC. Looks at the first bytes of each connection without
// taking them: HTTP/2 goes on to gRPC, a plain HTTP request is told where it came to, and whoever
// says nothing is sent away. It also bounds how many connections there are, which gRPC does not.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace asynctls {

// What the first bytes of a connection are.
enum class Greeting { kIncomplete, kHttp2, kHttp1, kOther };
Greeting GreetingOf(absl::string_view bytes);

class FrontDoor {
 public:
  struct Options {
    std::string listen;                           // HOST:PORT, port 0 = any free one
    uint32_t max_connections = 0;                 // together with those handed on and still open
    absl::Duration patience = absl::Seconds(10);  // for the first bytes
    std::string http_hint;  // where HTTP is served instead, for people; may be empty
  };
  // Binds and listens. Errors: INVALID_ARGUMENT or UNAVAILABLE naming the address.
  static absl::StatusOr<std::unique_ptr<FrontDoor>> Listen(Options options);
  // Closes the socket and the connections that were not handed on.
  ~FrontDoor();

  int port() const { return port_; }

  // Starts the thread. `hand_on` is called on it with the socket of each HTTP/2 connection, of
  // which nothing was read, and owns it from then on. Once.
  void Open(absl::AnyInvocable<void(int fd)> hand_on);
  // No more connections; those handed on are not touched. Idempotent.
  void Close();

 private:
  explicit FrontDoor(Options options) : options_(std::move(options)) {}

  void Run();
  void Accept();
  void Look(int fd);
  void SendAway(int fd);
  void Forget(int fd);
  void DropSilent(absl::Time now);
  bool Full();

  const Options options_;
  int port_ = 0;
  int listener_ = -1, epoll_ = -1, stop_ = -1;
  absl::AnyInvocable<void(int)> hand_on_;

  // The thread only.
  std::map<int, absl::Time> silent_;   // connections that have not said enough, and until when
  std::map<int, uint64_t> handed_on_;  // sockets given away, with the inode they had

  std::thread thread_;
};

}  // namespace asynctls
