// SPDX-License-Identifier: Apache-2.0
// Pageable host memory: anonymous mappings, so that a large arena costs nothing until
// it is touched and huge pages can back it.
#include <sys/mman.h>

#include <cstddef>

#include "kernels/device/memory.h"

namespace asynctls {
namespace {

constexpr int64_t kHeader = 64;  // keeps the mapping's length in front of the data

}  // namespace

void* AllocateHostMemory(int64_t bytes) {
  const size_t length = static_cast<size_t>(bytes + kHeader);
  void* base = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  madvise(base, length, MADV_HUGEPAGE);
  *static_cast<size_t*>(base) = length;
  return static_cast<char*>(base) + kHeader;
}

void FreeHostMemory(void* data) {
  void* base = static_cast<char*>(data) - kHeader;
  munmap(base, *static_cast<size_t*>(base));
}

}  // namespace asynctls
