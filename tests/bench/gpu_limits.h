// SPDX-License-Identifier: Apache-2.0
// What the machine can do, measured: the limit that gpu_bench prints beside its figures.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace asynctls {

// Reads `bytes` of device memory once, as fast as it goes.
void LaunchRead(const void* data, int64_t bytes, uint32_t* out, CUstream_st* stream);

}  // namespace asynctls
