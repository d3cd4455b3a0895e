// SPDX-License-Identifier: Apache-2.0
#include "client/interrupt.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <utility>

#include "engine/base/check.h"

namespace asynctls {
namespace {

constexpr uint64_t kStop = uint64_t{1} << 32;  // more than signals there are

std::atomic<int> handler_fd{-1};

// Only what a signal handler may do.
void OnSignal(int) {
  const int error = errno;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(handler_fd, &one, sizeof(one));
  errno = error;
}

}  // namespace

InterruptScope::InterruptScope(std::function<void()> on_interrupt)
    : fd_(eventfd(0, EFD_CLOEXEC)), on_interrupt_(std::move(on_interrupt)) {
  ASYNCTLS_CHECK(fd_ >= 0 && handler_fd == -1);
  handler_fd = fd_;
  thread_ = std::thread([this] {
    for (uint64_t events = 0; events < kStop;) {
      if (read(fd_, &events, sizeof(events)) != sizeof(events)) continue;  // interrupted
      if (events % kStop > 0) on_interrupt_();
    }
  });
  struct sigaction action {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
}

InterruptScope::~InterruptScope() {
  std::signal(SIGINT, SIG_DFL);
  [[maybe_unused]] const ssize_t written = write(fd_, &kStop, sizeof(kStop));
  thread_.join();
  handler_fd = -1;
  close(fd_);
}

}  // namespace asynctls
