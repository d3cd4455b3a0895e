// SPDX-License-Identifier: Apache-2.0
// The GPUs of this machine, before one is chosen.
#pragma once

#include <cstdint>

namespace asynctls {

// How many there are; 0 without a driver.
int CudaDevices();
// Bytes of a GPU's memory that are free. Requires: device < CudaDevices().
int64_t CudaAvailableMemory(int device);

}  // namespace asynctls
