// SPDX-License-Identifier: Apache-2.0
// HttpServer: an HTTP/1.1 port (Boost.Beast) and its two I/O threads. Every connection belongs to
// one of them; a connection costs a few kilobytes and no thread.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/http/http_call.h"

namespace asynctls {

struct HttpLimits {
  int connections = 1024;
  uint32_t header_bytes = 16 << 10;     // of one request; 431 beyond
  uint64_t body_bytes = 16 << 20;       // of one request; 413 beyond
  uint64_t all_body_bytes = 256 << 20;  // of requests being read and answered; 503 beyond
  // Between two requests of a connection; for the headers of one, from its first byte; for its
  // body; for a write to make progress. The connection is closed then.
  absl::Duration idle = absl::Seconds(75);
  absl::Duration header = absl::Seconds(10);
  absl::Duration body = absl::Seconds(60);
  absl::Duration write = absl::Seconds(60);
};

class HttpServer {
 public:
  // `listen` is HOST:PORT or [V6]:PORT, port 0 = any free one. Errors: UNAVAILABLE naming the
  // address.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& listen,
                                                           const HttpLimits& limits,
                                                           HttpHandler handler);
  // As Shutdown(0).
  ~HttpServer();

  int port() const;
  int connections() const;

  // Accepts no more, closes connections between requests, and the others once they are answered
  // or `flush` has passed. Returns when every HttpCall is gone. Any thread but an I/O thread;
  // repeatedly.
  void Shutdown(absl::Duration flush);

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace asynctls
