// SPDX-License-Identifier: Apache-2.0
// HttpSession: one connection. Reads a request, hands it to the handler, writes the answer, reads
// the next; what a client sends ahead waits unread. While a request is answered the socket is
// watched, so that a client that leaves is noticed at once. For http_server.cc only.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/beast/core/flat_buffer.hpp"
#include "boost/beast/http/parser.hpp"
#include "boost/beast/http/string_body.hpp"
#include "server/http/http_call.h"
#include "server/http/http_server.h"

namespace asynctls {

// Counts of the whole server, shared by its threads and calls.
struct HttpTotals {
  std::atomic<uint64_t> body_bytes{0};  // reserved

  std::mutex mu;  // guards what follows
  std::condition_variable fewer;
  int connections = 0;
  int calls = 0;  // HttpCalls alive

  void Add(int HttpTotals::*count, int n) {
    std::lock_guard lock(mu);
    this->*count += n;
    if (n < 0) fewer.notify_all();
  }
};

class HttpSession;

// What the sessions of one I/O thread share. Outlives them.
struct HttpLoop {
  HttpLoop(const HttpLimits& limits,
           const HttpHandler& handler,
           const std::shared_ptr<HttpTotals>& totals)
      : limits(limits), handler(handler), totals(totals) {}

  const HttpLimits limits;
  const HttpHandler handler;
  const std::shared_ptr<HttpTotals> totals;
  // Of the loop's thread.
  std::unordered_set<HttpSession*> sessions;
  bool closing = false;  // connections end with the answer under way

  boost::asio::io_context context{1};  // destroyed first: its handlers hold sessions
};

// Everything on the loop's thread.
class HttpSession final : public std::enable_shared_from_this<HttpSession> {
 public:
  // Counts itself among the loop's sessions, and out of the connections at its end.
  HttpSession(boost::asio::ip::tcp::socket socket, HttpLoop& loop);
  ~HttpSession();

  void Start();
  // Closes the connection if its time is up.
  void CheckTime(absl::Time now);
  // Closes it once it is between two requests.
  void CloseWhenIdle();
  void Close();

 private:
  class Call;
  // kLingering: the last answer is out, and what the client still sends is thrown away until it
  // closes; closing first could destroy the answer on its way.
  enum class State { kIdle, kHeader, kBody, kAnswering, kLingering, kClosed };
  struct Output {
    std::string bytes;
    absl::AnyInvocable<void(bool ok)> done;  // may be empty
  };
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;

  // Reading.
  void NewRequest();
  void Read();
  void OnRead(size_t bytes, bool ok);
  void Parse();
  void HeaderDone();
  void Dispatch();
  // Answers what is no request, and ends the connection.
  void Refuse(int status, const std::string& message);
  void ReleaseBody();

  // Answering; `call` is the number of the request meant.
  bool Answers(uint64_t call) const { return call == call_ && state_ == State::kAnswering; }
  void Respond(uint64_t call, HttpResponse response);
  void StartStream(uint64_t call, HttpResponse head);
  void Send(uint64_t call, std::string bytes, absl::AnyInvocable<void(bool ok)> done);
  void End(uint64_t call, std::string last_bytes);
  void SetGone(uint64_t call, absl::AnyInvocable<void()> gone);
  void Dropped(uint64_t call);
  // `length` absent: in chunks, or up to the end of the connection.
  std::string Head(const HttpResponse& response, std::optional<size_t> length);
  std::string Chunk(const std::string& bytes);
  void Queue(std::string bytes, absl::AnyInvocable<void(bool ok)> done);
  void Write();
  void OnWritten(size_t bytes, bool ok);
  void AnswerWritten();

  boost::asio::ip::tcp::socket socket_;
  HttpLoop& loop_;
  State state_ = State::kIdle;
  absl::Time deadline_ = absl::InfiniteFuture();  // of the state
  absl::Time write_deadline_ = absl::InfiniteFuture();

  boost::beast::flat_buffer in_;
  bool reading_ = false;
  std::optional<Parser> parser_;
  bool header_seen_ = false;
  uint64_t reserved_ = 0;  // of all_body_bytes

  // Of the request being answered.
  uint64_t call_ = 0;  // its number
  absl::AnyInvocable<void()> gone_;
  std::string head_;  // of a stream, until its first bytes
  bool head_only_ = false, chunked_ = false, keep_alive_ = false, complete_ = false;
  unsigned version_ = 11;

  std::deque<Output> out_;  // the first is being written
  size_t written_ = 0;      // of it
};

}  // namespace asynctls
