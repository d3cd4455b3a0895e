// SPDX-License-Identifier: Apache-2.0
// The runtime's memory calls, one implementation of the first three per build: no_device_memory.cc
// or cuda_memory.cc. CMake picks the file; nothing is conditional in code.
#pragma once

#include <cstdint>

#include "kernels/device/buffer.h"

namespace asynctls {

// Zero-filled memory, or nullptr when there is none.
void* AllocateMemory(MemoryKind kind, int64_t bytes);
void FreeMemory(MemoryKind kind, void* data);
// Whether this build can allocate `kind`.
bool SupportsMemory(MemoryKind kind);

// Pageable host memory, in every build (host_memory.cc).
void* AllocateHostMemory(int64_t bytes);
void FreeHostMemory(void* data);

}  // namespace asynctls
