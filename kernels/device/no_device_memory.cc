// SPDX-License-Identifier: Apache-2.0
// Memory of a build without a device.
#include "kernels/device/memory.h"

namespace asynctls {

void* AllocateMemory(MemoryKind, int64_t bytes) { return AllocateHostMemory(bytes); }

void FreeMemory(MemoryKind, void* data) { FreeHostMemory(data); }

bool SupportsMemory(MemoryKind kind) { return kind == MemoryKind::kHost; }

}  // namespace asynctls
