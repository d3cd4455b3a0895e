// SPDX-License-Identifier: Apache-2.0
// The backends that op tests run on: the reference too, for what a test states without it; the GPU
// in builds with CUDA, skipped where there is none.
#pragma once

#include <gtest/gtest.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/ref/ref_ops.h"
#ifdef ASYNCTLS_TEST_GPU
#include "tests/testing/gpu.h"
#endif

namespace asynctls::testing {

struct Reference {
  RefOps ops;
};
struct CpuOneThread {
  CpuOps ops{1};
};
struct CpuThreeThreads {
  CpuOps ops{3};
};
#ifdef ASYNCTLS_TEST_GPU
struct Gpu {
  GpuOps ops;
};
using Backends = ::testing::Types<Reference, CpuOneThread, CpuThreeThreads, Gpu>;
#else
using Backends = ::testing::Types<Reference, CpuOneThread, CpuThreeThreads>;
#endif

// Calls check(ops) with every backend but the reference.
template <typename Check>
void OnEveryBackend(Check check) {
  {
    SCOPED_TRACE("CPU, 1 thread");
    CpuOps ops(1);
    check(ops);
  }
  {
    SCOPED_TRACE("CPU, 3 threads");
    CpuOps ops(3);
    check(ops);
  }
#ifdef ASYNCTLS_TEST_GPU
  SCOPED_TRACE("GPU");
  GpuOps gpu;
  if (gpu.available()) check(gpu);
#endif
}

template <typename Backend>
class OpTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if constexpr (requires { backend_.ops.available(); }) {
      if (!backend_.ops.available()) GTEST_SKIP() << "no GPU on this machine";
    }
  }

  Backend backend_;
  RefOps reference_;
};

}  // namespace asynctls::testing
