// SPDX-License-Identifier: Apache-2.0
// What a CUDA or cuBLAS call of ours cannot return without the process being broken: fatal, with
// the place, the call and the runtime's message.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

namespace asynctls {

[[noreturn]] inline void CudaFailed(const char* file, int line, const char* call, const char* why) {
  std::fprintf(stderr, "%s:%d: %s: %s\n", file, line, call, why);
  std::abort();
}

}  // namespace asynctls

#define CUDA_CHECK(call)                                                                       \
  do {                                                                                         \
    const cudaError_t cuda_check_error = (call);                                               \
    if (cuda_check_error != cudaSuccess) {                                                     \
      ::asynctls::CudaFailed(__FILE__, __LINE__, #call, cudaGetErrorString(cuda_check_error)); \
    }                                                                                          \
  } while (false)

#define CUBLAS_CHECK(call)                                                          \
  do {                                                                              \
    const cublasStatus_t cublas_check_status = (call);                              \
    if (cublas_check_status != CUBLAS_STATUS_SUCCESS) {                             \
      ::asynctls::CudaFailed(                                                       \
          __FILE__, __LINE__, #call, cublasLtGetStatusString(cublas_check_status)); \
    }                                                                               \
  } while (false)
