// SPDX-License-Identifier: Apache-2.0
#include "server/http/http_server.h"

#include <thread>
#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "boost/asio/executor_work_guard.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/steady_timer.hpp"
#include "engine/base/host_port.h"
#include "server/http/http_session.h"

namespace asynctls {
namespace {

namespace net = boost::asio;
using ErrorCode = boost::system::error_code;
using tcp = net::ip::tcp;

constexpr int kThreads = 2;
// How often connections are held against their time limits, and accepting is tried again after an
// error (no more descriptors).
constexpr std::chrono::milliseconds kTick(100);

constexpr char kTooMany[] =
    "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    "Content-Length: 0\r\n\r\n";

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const HttpLimits& limits, const HttpHandler& handler)
      : limits_(limits),
        totals_(std::make_shared<HttpTotals>()),
        threads_(MakeThreads(limits, handler, totals_)) {}

  absl::Status Listen(const std::string& listen) {
    const auto address = ParseHostPort("http_listen", listen);
    if (!address.ok()) return address.status();
    ErrorCode error;
    tcp::resolver resolver(threads_[0]->loop.context);
    const auto found = resolver.resolve(address->first,
                                        absl::StrCat(address->second),
                                        tcp::resolver::passive | tcp::resolver::numeric_service,
                                        error);
    if (!error) {
      const tcp::endpoint endpoint = found.begin()->endpoint();
      acceptor_.open(endpoint.protocol(), error);
      if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
      if (!error) acceptor_.bind(endpoint, error);
      if (!error) acceptor_.listen(net::socket_base::max_listen_connections, error);
    }
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("http_listen ", listen, " cannot be bound: ", error.message()));
    }
    port_ = acceptor_.local_endpoint().port();
    return absl::OkStatus();
  }

  void Run() {
    Accept();
    for (auto& thread : threads_) {
      Tick(*thread);
      thread->thread = std::thread([&loop = thread->loop] { loop.context.run(); });
    }
  }

  void Shutdown(absl::Duration flush) {
    net::post(threads_[0]->loop.context, [this] {
      ErrorCode ignored;
      acceptor_.close(ignored);
      accept_again_.cancel();
    });
    // Before anything else, so that a connection that is just being accepted is not begun.
    for (auto& thread : threads_) {
      net::post(thread->loop.context, [&loop = thread->loop] { loop.closing = true; });
    }
    ForSessions([](HttpSession& session) { session.CloseWhenIdle(); });
    std::unique_lock lock(totals_->mu);
    totals_->fewer.wait_for(lock, absl::ToChronoMilliseconds(flush), [this] {
      return totals_->connections == 0 && totals_->calls == 0;
    });
    lock.unlock();
    ForSessions([](HttpSession& session) { session.Close(); });
    lock.lock();
    totals_->fewer.wait(lock, [this] { return totals_->calls == 0; });
  }

  // After Shutdown.
  void Join() {
    for (auto& thread : threads_) {
      net::post(thread->loop.context, [&thread = *thread] {
        thread.closed = true;
        thread.tick.cancel();
        thread.guard.reset();
      });
      thread->thread.join();
    }
  }

  int port() const { return port_; }
  int connections() const {
    std::lock_guard lock(totals_->mu);
    return totals_->connections;
  }

 private:
  struct Thread {
    Thread(const HttpLimits& limits,
           const HttpHandler& handler,
           const std::shared_ptr<HttpTotals>& totals)
        : loop(limits, handler, totals) {}
    HttpLoop loop;
    net::executor_work_guard<net::io_context::executor_type> guard{loop.context.get_executor()};
    net::steady_timer tick{loop.context};
    bool closed = false;
    std::thread thread;
  };

  using Threads = std::vector<std::unique_ptr<Thread>>;

  static Threads MakeThreads(const HttpLimits& limits,
                             const HttpHandler& handler,
                             const std::shared_ptr<HttpTotals>& totals) {
    Threads out;
    for (int i = 0; i < kThreads; ++i) {
      out.push_back(std::make_unique<Thread>(limits, handler, totals));
    }
    return out;
  }

  // Calls `visit` for every session, on its thread.
  template <class Visit>
  void ForSessions(Visit visit) {
    for (auto& thread : threads_) {
      net::post(thread->loop.context, [&loop = thread->loop, visit] {
        // Visiting may end a session, and with it others' calls.
        const std::vector<HttpSession*> sessions(loop.sessions.begin(), loop.sessions.end());
        for (HttpSession* session : sessions) {
          if (loop.sessions.count(session) > 0) visit(*session);
        }
      });
    }
  }

  void Accept() {
    Thread& next = *threads_[next_++ % kThreads];
    acceptor_.async_accept(next.loop.context, [this, &next](ErrorCode error, tcp::socket socket) {
      if (error == net::error::operation_aborted || !acceptor_.is_open()) return;
      if (error) return AcceptLater();
      if (connections() >= limits_.connections) {
        socket.non_blocking(true, error);
        socket.write_some(net::buffer(kTooMany, sizeof(kTooMany) - 1), error);
      } else {
        totals_->Add(&HttpTotals::connections, 1);
        net::post(next.loop.context, [&loop = next.loop, socket = std::move(socket)]() mutable {
          const auto session = std::make_shared<HttpSession>(std::move(socket), loop);
          if (!loop.closing) session->Start();
        });
      }
      Accept();
    });
  }

  void AcceptLater() {
    accept_again_.expires_after(kTick);
    accept_again_.async_wait([this](ErrorCode error) {
      if (!error) Accept();
    });
  }

  void Tick(Thread& thread) {
    thread.tick.expires_after(kTick);
    thread.tick.async_wait([this, &thread](ErrorCode) {
      if (thread.closed) return;
      const absl::Time now = absl::Now();
      HttpLoop& loop = thread.loop;
      const std::vector<HttpSession*> sessions(loop.sessions.begin(), loop.sessions.end());
      for (HttpSession* session : sessions) {
        if (loop.sessions.count(session) > 0) session->CheckTime(now);
      }
      Tick(thread);
    });
  }

  const HttpLimits limits_;
  const std::shared_ptr<HttpTotals> totals_;
  const Threads threads_;
  // Of the first thread.
  tcp::acceptor acceptor_{threads_[0]->loop.context};
  net::steady_timer accept_again_{threads_[0]->loop.context};
  size_t next_ = 0;
  int port_ = 0;
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& listen,
                                                              const HttpLimits& limits,
                                                              HttpHandler handler) {
  auto impl = std::make_unique<Impl>(limits, handler);
  const absl::Status status = impl->Listen(listen);
  if (!status.ok()) return status;
  impl->Run();
  return absl::WrapUnique(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpServer::~HttpServer() {
  impl_->Shutdown(absl::ZeroDuration());
  impl_->Join();
}

int HttpServer::port() const { return impl_->port(); }
int HttpServer::connections() const { return impl_->connections(); }
void HttpServer::Shutdown(absl::Duration flush) { impl_->Shutdown(flush); }

}  // namespace asynctls
