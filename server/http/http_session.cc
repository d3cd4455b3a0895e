// SPDX-License-Identifier: Apache-2.0
#include "server/http/http_session.h"

#include <algorithm>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "boost/asio/dispatch.hpp"
#include "boost/asio/post.hpp"
#include "boost/beast/core/buffers_to_string.hpp"
#include "boost/beast/http/chunk_encode.hpp"
#include "boost/beast/http/empty_body.hpp"
#include "boost/beast/http/message.hpp"
#include "boost/beast/http/write.hpp"
#include "server/http/http_error.h"

namespace asynctls {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;
namespace net = boost::asio;
using ErrorCode = boost::system::error_code;

constexpr size_t kReadBytes = 4 << 10;       // at a time
constexpr size_t kReadBodyBytes = 64 << 10;  // likewise, of a body
// What a client may send ahead while its request is answered; beyond that it is not read, and
// whether the client is still there shows only in writes.
constexpr size_t kReadAhead = 64 << 10;
constexpr absl::Duration kLinger = absl::Seconds(2);

int HexDigit(char c) {
  if (!absl::ascii_isxdigit(c)) return -1;
  return absl::ascii_isdigit(c) ? c - '0' : absl::ascii_tolower(c) - 'a' + 10;
}

// The path of a request target, percent-decoded; escapes that are none stay.
std::string PathOf(absl::string_view target) {
  target = target.substr(0, target.find('?'));
  std::string out;
  for (size_t i = 0; i < target.size(); ++i) {
    if (target[i] == '%' && i + 2 < target.size() && HexDigit(target[i + 1]) >= 0 &&
        HexDigit(target[i + 2]) >= 0) {
      out += static_cast<char>(HexDigit(target[i + 1]) * 16 + HexDigit(target[i + 2]));
      i += 2;
    } else {
      out += target[i];
    }
  }
  return out;
}

absl::string_view View(beast::string_view text) { return {text.data(), text.size()}; }

HttpRequest ToRequest(http::request<http::string_body> message) {
  HttpRequest out;
  out.method = std::string(message.method_string());
  out.path = PathOf(View(message.target()));
  for (const auto& field : message) {
    out.headers.emplace_back(absl::AsciiStrToLower(View(field.name_string())),
                             std::string(field.value()));
  }
  out.body = std::move(message.body());
  return out;
}

}  // namespace

// What handlers hold: the number of a request, and the way to its connection's thread.
class HttpSession::Call final : public HttpCall {
 public:
  Call(std::shared_ptr<HttpSession> session, uint64_t number)
      : session_(std::move(session)), totals_(session_->loop_.totals), number_(number) {
    totals_->Add(&HttpTotals::calls, 1);
  }
  ~Call() override {
    // A session ends on its own thread.
    net::io_context& context = session_->loop_.context;
    net::post(context,
              [session = std::move(session_), number = number_] { session->Dropped(number); });
    totals_->Add(&HttpTotals::calls, -1);
  }

  void Respond(HttpResponse response) override {
    Run([number = number_, response = std::move(response)](HttpSession& session) mutable {
      session.Respond(number, std::move(response));
    });
  }
  void StartStream(HttpResponse head) override {
    Run([number = number_, head = std::move(head)](HttpSession& session) mutable {
      session.StartStream(number, std::move(head));
    });
  }
  void Send(std::string bytes, absl::AnyInvocable<void(bool ok)> done) override {
    Run([number = number_, bytes = std::move(bytes), done = std::move(done)](
            HttpSession& session) mutable {
      session.Send(number, std::move(bytes), std::move(done));
    });
  }
  void End(std::string last_bytes) override {
    Run([number = number_, bytes = std::move(last_bytes)](HttpSession& session) mutable {
      session.End(number, std::move(bytes));
    });
  }
  void OnGone(absl::AnyInvocable<void()> gone) override {
    Run([number = number_, gone = std::move(gone)](HttpSession& session) mutable {
      session.SetGone(number, std::move(gone));
    });
  }

 private:
  template <class Task>
  void Run(Task task) {
    net::dispatch(session_->loop_.context,
                  [session = session_, task = std::move(task)]() mutable { task(*session); });
  }

  std::shared_ptr<HttpSession> session_;
  const std::shared_ptr<HttpTotals> totals_;
  const uint64_t number_;
};

HttpSession::HttpSession(net::ip::tcp::socket socket, HttpLoop& loop)
    : socket_(std::move(socket)), loop_(loop) {
  loop_.sessions.insert(this);
}

HttpSession::~HttpSession() {
  ReleaseBody();
  loop_.sessions.erase(this);
  loop_.totals->Add(&HttpTotals::connections, -1);
}

void HttpSession::Start() {
  ErrorCode ignored;
  socket_.set_option(net::ip::tcp::no_delay(true), ignored);
  NewRequest();
  Read();
}

void HttpSession::CheckTime(absl::Time now) {
  if (now > deadline_ || now > write_deadline_) Close();
}

void HttpSession::CloseWhenIdle() {
  if (state_ == State::kIdle || state_ == State::kHeader || state_ == State::kLingering) Close();
}

void HttpSession::Close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  deadline_ = write_deadline_ = absl::InfiniteFuture();
  ErrorCode ignored;
  socket_.close(ignored);  // what is under way comes back with an error
  if (gone_) std::exchange(gone_, nullptr)();
}

// -------------------------------------------------------------------------------------- reading --

void HttpSession::NewRequest() {
  state_ = State::kIdle;
  deadline_ = absl::Now() + loop_.limits.idle;
  header_seen_ = false;
  parser_.emplace();
  parser_->eager(true);
  parser_->header_limit(loop_.limits.header_bytes);
  parser_->body_limit(loop_.limits.body_bytes);
}

void HttpSession::Read() {
  if (reading_ || state_ == State::kClosed) return;
  if (state_ == State::kAnswering && in_.size() >= kReadAhead) return;
  reading_ = true;
  socket_.async_read_some(
      in_.prepare(state_ == State::kBody ? kReadBodyBytes : kReadBytes),
      [self = shared_from_this()](ErrorCode error, size_t bytes) { self->OnRead(bytes, !error); });
}

void HttpSession::OnRead(size_t bytes, bool ok) {
  reading_ = false;
  if (!ok) return Close();  // half-closed is closed: whoever wants an answer stays
  in_.commit(bytes);
  if (state_ == State::kLingering) in_.clear();
  if (state_ == State::kAnswering || state_ == State::kLingering) return Read();
  Parse();
}

void HttpSession::Parse() {
  while (in_.size() > 0) {
    if (state_ == State::kIdle) {
      state_ = State::kHeader;
      deadline_ = absl::Now() + loop_.limits.header;
    }
    ErrorCode error;
    const size_t used = parser_->put(in_.data(), error);
    in_.consume(used);
    if (error == http::error::need_more) error = {};
    if (error == http::error::body_limit) return Refuse(413, "the body is too large");
    if (error == http::error::header_limit) return Refuse(431, "the headers are too large");
    if (error) return Refuse(400, "not an HTTP/1.1 request: " + error.message());
    if (!header_seen_ && parser_->is_header_done()) HeaderDone();
    if (state_ != State::kHeader && state_ != State::kBody) return;  // refused
    if (parser_->is_done()) return Dispatch();
    if (used == 0) break;
  }
  Read();
}

void HttpSession::HeaderDone() {
  header_seen_ = true;
  state_ = State::kBody;
  deadline_ = absl::Now() + loop_.limits.body;
  const auto length = parser_->content_length();
  reserved_ = parser_->chunked() ? loop_.limits.body_bytes : length ? *length : 0;
  if (loop_.totals->body_bytes.fetch_add(reserved_) + reserved_ > loop_.limits.all_body_bytes) {
    return Refuse(503, "too many large requests at the same time");
  }
  const absl::string_view expect = View(parser_->get()[http::field::expect]);
  if (absl::EqualsIgnoreCase(expect, "100-continue") && !parser_->is_done()) {
    Queue("HTTP/1.1 100 Continue\r\n\r\n", nullptr);
  }
}

void HttpSession::Dispatch() {
  http::request<http::string_body> message = parser_->release();
  version_ = message.version();
  keep_alive_ = message.keep_alive();
  head_only_ = message.method() == http::verb::head;
  parser_.reset();
  state_ = State::kAnswering;
  deadline_ = absl::InfiniteFuture();
  complete_ = false;
  const auto call = std::make_shared<Call>(shared_from_this(), ++call_);
  loop_.handler(ToRequest(std::move(message)), call);
  Read();
}

void HttpSession::Refuse(int status, const std::string& message) {
  state_ = State::kAnswering;
  deadline_ = absl::InfiniteFuture();
  keep_alive_ = head_only_ = complete_ = false;
  Respond(++call_, ErrorResponse(status, message));
}

void HttpSession::ReleaseBody() { loop_.totals->body_bytes -= std::exchange(reserved_, 0); }

// ------------------------------------------------------------------------------------ answering --

void HttpSession::Respond(uint64_t call, HttpResponse response) {
  if (!Answers(call)) return;
  std::string bytes = Head(response, response.body.size());
  if (!head_only_) bytes += response.body;
  complete_ = true;
  Queue(std::move(bytes), nullptr);
}

void HttpSession::StartStream(uint64_t call, HttpResponse head) {
  if (Answers(call)) head_ = Head(head, std::nullopt);
}

void HttpSession::Send(uint64_t call, std::string bytes, absl::AnyInvocable<void(bool ok)> done) {
  if (Answers(call)) return Queue(std::exchange(head_, "") + Chunk(bytes), std::move(done));
  net::post(loop_.context, [done = std::move(done)]() mutable { done(false); });
}

void HttpSession::End(uint64_t call, std::string last_bytes) {
  if (!Answers(call)) return;
  std::string bytes = std::exchange(head_, "");
  if (!last_bytes.empty()) bytes += Chunk(last_bytes);
  if (chunked_) bytes += "0\r\n\r\n";
  complete_ = true;
  Queue(std::move(bytes), nullptr);
}

void HttpSession::SetGone(uint64_t call, absl::AnyInvocable<void()> gone) {
  if (call != call_ || complete_) return;
  if (state_ == State::kClosed) return gone();
  gone_ = std::move(gone);
}

void HttpSession::Dropped(uint64_t call) {
  if (Answers(call) && !complete_) Close();
}

std::string HttpSession::Head(const HttpResponse& response, std::optional<size_t> length) {
  http::response<http::empty_body> head;
  head.version(version_);
  head.result(static_cast<unsigned>(response.status));
  if (response.status == kClientClosedRequest) head.reason("Client Closed Request");
  head.set(http::field::server, "asynctls");
  head.set(http::field::content_type, response.content_type);
  head.set("X-Content-Type-Options", "nosniff");
  for (const auto& [name, value] : response.headers) head.set(name, value);
  chunked_ = !length.has_value() && version_ >= 11;
  if (chunked_) head.chunked(true);
  if (length.has_value()) head.content_length(*length);
  if (loop_.closing || (!length.has_value() && !chunked_)) keep_alive_ = false;
  head.keep_alive(keep_alive_);
  std::ostringstream out;
  out << head.base();
  return out.str();
}

std::string HttpSession::Chunk(const std::string& bytes) {
  return chunked_ ? beast::buffers_to_string(http::make_chunk(net::buffer(bytes))) : bytes;
}

// A write is under way wherever out_ is not empty.
void HttpSession::Queue(std::string bytes, absl::AnyInvocable<void(bool ok)> done) {
  out_.push_back({std::move(bytes), std::move(done)});
  if (out_.size() == 1) Write();
}

void HttpSession::Write() {
  write_deadline_ = absl::Now() + loop_.limits.write;
  const std::string& bytes = out_.front().bytes;
  socket_.async_write_some(
      net::buffer(bytes.data() + written_, bytes.size() - written_),
      [self = shared_from_this()](ErrorCode error, size_t n) { self->OnWritten(n, !error); });
}

void HttpSession::OnWritten(size_t bytes, bool ok) {
  if (!ok || state_ == State::kClosed) {
    Close();
    for (Output& output : std::exchange(out_, {})) {
      if (output.done) output.done(false);
    }
    return;
  }
  written_ += bytes;
  if (written_ < out_.front().bytes.size()) return Write();
  written_ = 0;
  auto done = std::move(out_.front().done);
  out_.pop_front();
  write_deadline_ = absl::InfiniteFuture();
  if (!out_.empty()) Write();
  if (done) done(true);
  if (out_.empty() && complete_ && state_ == State::kAnswering) AnswerWritten();
}

void HttpSession::AnswerWritten() {
  gone_ = nullptr;
  ReleaseBody();
  if (keep_alive_ && !loop_.closing) {
    NewRequest();
    return Parse();  // what was sent ahead
  }
  ErrorCode ignored;
  socket_.shutdown(net::ip::tcp::socket::shutdown_send, ignored);
  if (loop_.closing) return Close();
  state_ = State::kLingering;
  deadline_ = absl::Now() + kLinger;
  in_.clear();
  Read();
}

}  // namespace asynctls
