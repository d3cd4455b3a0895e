// SPDX-License-Identifier: Apache-2.0
// What a handler of HTTP requests sees: the request, and the call its answer goes to. No sockets,
// no Beast.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"

namespace asynctls {

struct HttpRequest {
  std::string method;                                        // upper case
  std::string path;                                          // percent-decoded, without the query
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
  std::string body;

  // Empty where there is none; the first of several.
  std::string Header(const std::string& lower_name) const {
    for (const auto& [name, value] : headers) {
      if (name == lower_name) return value;
    }
    return "";
  }
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;  // others; safe to send as they are
  std::string body;
};

// The answer to one request: either Respond, or a StartStream, Sends and an End. Any thread; one
// call at a time. A call that is dropped unanswered closes its connection.
class HttpCall {
 public:
  virtual ~HttpCall() = default;

  virtual void Respond(HttpResponse response) = 0;

  // `head` without its body, which will come in chunks.
  virtual void StartStream(HttpResponse head) = 0;
  // `done` is called once, on an I/O thread: when the bytes are in the socket (true), or the client
  // has gone (false). Whoever sends bounds what is under way.
  virtual void Send(std::string bytes, absl::AnyInvocable<void(bool ok)> done) = 0;
  virtual void End(std::string last_bytes) = 0;

  // `gone` is called at most once, on an I/O thread, when the client leaves before the answer is
  // complete; at once where it has left already.
  virtual void OnGone(absl::AnyInvocable<void()> gone) = 0;
};

// On an I/O thread; short.
using HttpHandler = std::function<void(HttpRequest request, std::shared_ptr<HttpCall> call)>;

}  // namespace asynctls
