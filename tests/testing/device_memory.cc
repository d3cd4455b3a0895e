// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/device_memory.h"

#include <sys/mman.h>

#include <map>
#include <mutex>

#include "kernels/device/memory.h"

namespace asynctls {
namespace {

constexpr int64_t kPage = 4096;

struct Regions {
  std::mutex access;  // held while the device's memory is open: ranks share it
  std::mutex mu;
  std::map<const char*, int64_t> device, pinned;  // begin, bytes
};
Regions& All() {
  static Regions& regions = *new Regions;
  return regions;
}

void Protect(int protection) {
  const std::lock_guard lock(All().mu);
  for (const auto& [data, bytes] : All().device) {
    mprotect(const_cast<char*>(data), static_cast<size_t>(bytes), protection);
  }
}

}  // namespace

void* AllocateMemory(MemoryKind kind, int64_t bytes) {
  if (kind == MemoryKind::kHost) return AllocateHostMemory(bytes);
  bytes = (bytes + kPage - 1) / kPage * kPage;
  const int protection = kind == MemoryKind::kDevice ? PROT_NONE : PROT_READ | PROT_WRITE;
  void* data =
      mmap(nullptr, static_cast<size_t>(bytes), protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  const std::lock_guard lock(All().mu);
  (kind == MemoryKind::kDevice ? All().device : All().pinned)[static_cast<char*>(data)] = bytes;
  return data;
}

void FreeMemory(MemoryKind kind, void* data) {
  if (kind == MemoryKind::kHost) return FreeHostMemory(data);
  const std::lock_guard lock(All().mu);
  auto& regions = kind == MemoryKind::kDevice ? All().device : All().pinned;
  const auto region = regions.find(static_cast<char*>(data));
  munmap(data, static_cast<size_t>(region->second));
  regions.erase(region);
}

bool SupportsMemory(MemoryKind) { return true; }

namespace testing {

DeviceAccess::DeviceAccess() {
  All().access.lock();
  Protect(PROT_READ | PROT_WRITE);
}
DeviceAccess::~DeviceAccess() {
  Protect(PROT_NONE);
  All().access.unlock();
}

bool IsPinned(const void* data) {
  const std::lock_guard lock(All().mu);
  const char* at = static_cast<const char*>(data);
  auto region = All().pinned.upper_bound(at);
  return region != All().pinned.begin() && at < (--region)->first + region->second;
}

}  // namespace testing
}  // namespace asynctls
