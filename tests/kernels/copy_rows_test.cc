// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

template <typename B>
using CopyRowsTest = OpTest<B>;
TYPED_TEST_SUITE(CopyRowsTest, Backends);

TYPED_TEST(CopyRowsTest, CopiesTheNamedRows) {
  for (int64_t width : {1, 33, 4096}) {
    const auto src = Normal<bf16, 2>({9, width}, 1);
    const auto rows = List<int32_t>({8, 0, 3, 3});
    Tensor<bf16, 2> dst({4, width});
    this->backend_.ops.CopyRows({.src = src, .rows = rows, .dst = dst});
    for (int s = 0; s < 4; ++s) {
      EXPECT_TRUE(Same(dst.view()[s], src.view()[rows(s)])) << s;
    }
  }
}

TYPED_TEST(CopyRowsTest, NoRows) {
  const auto src = Normal<bf16, 2>({2, 4}, 1);
  const Tensor<int32_t, 1> rows({0});
  const Tensor<bf16, 2> dst({0, 4});
  this->backend_.ops.CopyRows({.src = src, .rows = rows, .dst = dst});
  EXPECT_EQ(dst.size(), 0);
}

}  // namespace
}  // namespace asynctls::testing
