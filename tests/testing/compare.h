// SPDX-License-Identifier: Apache-2.0
// How far a backend may be from the reference: the tolerance table (kernels/README.md explains it)
// and the comparison that prints the first value out of it with its coordinates.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/device/view.h"
#include "tests/testing/tensor.h"

namespace asynctls::testing {

// `squared`: sum of squared differences over sum of squares of the reference. `steps`: the largest
// single difference, in bf16 steps (2^-8) of max(|reference|, root mean square of the reference).
struct Tolerance {
  double squared;
  double steps;
};
inline constexpr Tolerance kRounding{2e-6, 1.01};   // one rounding to bf16 may fall the other way
inline constexpr Tolerance kGemm{8e-6, 2.0};        // order of summation, then one rounding
inline constexpr Tolerance kLogits{1e-9, 0.1};      // as before, without the rounding
inline constexpr Tolerance kAppendKv{8e-6, 2.01};   // two roundings
inline constexpr Tolerance kAttend{2e-5, 4.0};      // weights rounded to bf16 before the values
inline constexpr Tolerance kAttendFp32{8e-6, 2.0};  // order of summation, exp, one rounding
inline constexpr Tolerance kLogProb{1e-9, 0.01};
inline constexpr Tolerance kLibm{1e-13, 1e-4};  // sine and cosine, rounded to fp32

template <int N>
std::string Coordinates(const std::array<int64_t, N>& shape, int64_t offset) {
  std::array<int64_t, N> at;
  for (int k = N - 1; k >= 0; --k) {
    at[k] = offset % shape[k];
    offset /= shape[k];
  }
  return absl::StrCat("[", absl::StrJoin(at, ", "), "]");
}

template <typename T, int N>
::testing::AssertionResult Close(const View<T, N>& got,
                                 const View<T, N>& want,
                                 const Tolerance& tolerance) {
  if (got.shape != want.shape) return ::testing::AssertionFailure() << "shapes differ";
  double difference = 0, total = 0;
  for (int64_t i = 0; i < want.size(); ++i) {
    const double w = Value(want.data[i]), d = Value(got.data[i]) - w;
    difference += d * d;
    total += w * w;
  }
  const double rms = std::sqrt(total / static_cast<double>(std::max<int64_t>(1, want.size())));
  for (int64_t i = 0; i < want.size(); ++i) {
    const double w = Value(want.data[i]), g = Value(got.data[i]);
    const double step = std::max(std::fabs(w), rms) / 256;
    if (!(std::fabs(g - w) <= tolerance.steps * step)) {
      return ::testing::AssertionFailure()
             << Coordinates<N>(want.shape, i) << " is " << g << ", reference " << w << ", "
             << (g - w) / step << " steps apart (limit " << tolerance.steps
             << "); squared error of all " << difference / total;
    }
  }
  if (difference > tolerance.squared * total) {
    return ::testing::AssertionFailure() << "squared error " << difference / total << " (limit "
                                         << tolerance.squared << "), no value far out";
  }
  return ::testing::AssertionSuccess();
}

// Bit for bit.
template <typename T, int N>
::testing::AssertionResult Same(const View<T, N>& got, const View<T, N>& want) {
  if (got.shape != want.shape) return ::testing::AssertionFailure() << "shapes differ";
  for (int64_t i = 0; i < want.size(); ++i) {
    if (std::memcmp(got.data + i, want.data + i, sizeof(T)) == 0) continue;
    return ::testing::AssertionFailure() << "first difference at " << Coordinates<N>(want.shape, i);
  }
  return ::testing::AssertionSuccess();
}

}  // namespace asynctls::testing
