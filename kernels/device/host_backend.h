// SPDX-License-Identifier: Apache-2.0
// HostBackend: what a backend that computes in host memory, at once, says of memory and order: base
// of the CPU's and the reference's ops.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>

#include "kernels/device/memory_kind.h"

namespace asynctls {

struct HostBackend {
  static constexpr MemoryKind kMemory = MemoryKind::kHost;
  static constexpr bool kSplitPasses = false;

  void Upload(void* device, const void* host, int64_t bytes) {
    std::memcpy(device, host, static_cast<size_t>(bytes));
  }
  void Download(void* host, const void* device, int64_t bytes) {
    std::memcpy(host, device, static_cast<size_t>(bytes));
  }
  void Wait() {}
  void Mark(int) {}
  void WaitFor(int) {}
  void WhenDone(int, const std::function<void()>& f) { f(); }
  double Seconds(int, int) const { return 0; }
  template <typename F>
  void Replay(uint64_t, const F& ops) {
    ops();
  }
};

}  // namespace asynctls
