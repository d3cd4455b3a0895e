// SPDX-License-Identifier: Apache-2.0
// Carver: hands out the views of an arena. The same code runs twice: over no memory, to learn how
// many bytes it needs before anything is allocated, then over the Buffer of that size.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/device/buffer.h"
#include "kernels/device/view.h"

namespace asynctls {

class Carver {
 public:
  // Measures only: the views have their shape but no data.
  Carver() = default;
  // Requires: `arena` outlives the views and is as large as the measuring run said.
  explicit Carver(const Buffer& arena) : base_(static_cast<char*>(arena.data())) {}

  template <typename T, int N>
  View<T, N> Take(std::array<int64_t, N> shape) {
    View<T, N> v(nullptr, shape);
    if (base_ != nullptr) v.data = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (v.bytes() + kAlign - 1) / kAlign * kAlign;
    return v;
  }

  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlign = 64;
  char* base_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace asynctls
