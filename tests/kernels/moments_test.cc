// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tests/testing/backends.h"
#include "tests/testing/tensor.h"

namespace asynctls::testing {
namespace {

TEST(MomentsTest, BackendsEqualTheReferenceAndAddUp) {
  for (auto [d, count, stride] :
       {std::tuple{16, 1, 16}, {64, 127, 80}, {128, 300, 128}, {48, 0, 48}}) {
    std::mt19937 random(static_cast<uint32_t>(d));
    std::normal_distribution<float> normal(0.3f, 1.0f);
    HostVector<bf16> x(static_cast<size_t>(count) * stride + d);
    for (bf16& v : x) v = ToBf16(normal(random));
    HostVector<double> second[2], first[2];
    const auto add_twice = [&](auto& ops, int i) {
      second[i].assign(static_cast<size_t>(d) * d, 5.0);
      first[i].assign(d, -3.0);
      const MomentsArgs a{
          x.data(), count, stride, {second[i].data(), {d, d}}, {first[i].data(), {d}}};
      ops.Moments(a);
      ops.Moments(a);
    };
    RefOps reference;
    add_twice(reference, 0);
    OnEveryBackend([&](auto& ops) {
      add_twice(ops, 1);
      for (size_t i = 0; i < second[0].size(); ++i) {
        EXPECT_NEAR(second[0][i], second[1][i], 1e-5 * (std::fabs(second[0][i]) + count));
      }
      for (int i = 0; i < d; ++i) EXPECT_NEAR(first[0][i], first[1][i], 1e-9 * (1 + count));
    });
    double sum = 0, square = 0;
    for (int i = 0; i < count; ++i) {
      const double v = ToFloat(x[static_cast<size_t>(i) * stride]);
      sum += v;
      square += v * v;
    }
    EXPECT_NEAR(first[0][0], -3.0 + 2 * sum, 1e-9);
    EXPECT_NEAR(second[0][0], 5.0 + 2 * square, 1e-9);
  }
}

}  // namespace
}  // namespace asynctls::testing
