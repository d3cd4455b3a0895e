// SPDX-License-Identifier: Apache-2.0
// Memory of a build with CUDA: page-locked and device memory from its runtime.
#include <cuda_runtime_api.h>

#include <cstring>

#include "kernels/device/memory.h"

namespace asynctls {

void* AllocateMemory(MemoryKind kind, int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  void* data = nullptr;
  switch (kind) {
    case MemoryKind::kHost:
      return AllocateHostMemory(bytes);
    case MemoryKind::kPinned:
      if (cudaHostAlloc(&data, size, cudaHostAllocDefault) != cudaSuccess) return nullptr;
      std::memset(data, 0, size);
      return data;
    case MemoryKind::kDevice:
      if (cudaMalloc(&data, size) != cudaSuccess) return nullptr;
      // Done before any other stream can write to it.
      if (cudaMemset(data, 0, size) == cudaSuccess && cudaStreamSynchronize(nullptr) == cudaSuccess)
        return data;
      cudaFree(data);
      return nullptr;
  }
  return nullptr;
}

void FreeMemory(MemoryKind kind, void* data) {
  switch (kind) {
    case MemoryKind::kHost:
      return FreeHostMemory(data);
    case MemoryKind::kPinned:
      cudaFreeHost(data);
      return;
    case MemoryKind::kDevice:
      cudaFree(data);
      return;
  }
}

bool SupportsMemory(MemoryKind) { return true; }

}  // namespace asynctls
