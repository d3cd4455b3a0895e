// SPDX-License-Identifier: Apache-2.0
// The backends that op tests run on: the reference too, for what a test states without it.
#pragma once

#include <gtest/gtest.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/ref/ref_ops.h"

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

using Backends = ::testing::Types<Reference, CpuOneThread, CpuThreeThreads>;

template <typename Backend>
class OpTest : public ::testing::Test {
 protected:
  Backend backend_;
  RefOps reference_;
};

}  // namespace asynctls::testing
