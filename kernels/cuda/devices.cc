// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/devices.h"

#include <cuda_runtime_api.h>

#include "kernels/cuda/check.h"

namespace asynctls {

int CudaDevices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

int64_t CudaAvailableMemory(int device) {
  CUDA_CHECK(cudaSetDevice(device));
  size_t available = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&available, &total));
  return static_cast<int64_t>(available);
}

}  // namespace asynctls
