// SPDX-License-Identifier: Apache-2.0
// View<T, N>: a copyable, non-owning, contiguous row-major window on somebody's memory. It says
// nothing of where the memory is; the op that reads it does. Views and owners (Buffer) are
// different types on purpose: a View never frees anything.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace asynctls {

template <typename T, int N>
struct View {
  T* data = nullptr;
  std::array<int64_t, N> shape{};  // outermost first

  View() = default;
  View(T* d, std::array<int64_t, N> s) : data(d), shape(s) {}
  // A view of mutable data is a view of const data.
  template <typename U>
    requires(std::is_same_v<const U, T>)
  View(const View<U, N>& other) : data(other.data), shape(other.shape) {}  // NOLINT

  int64_t dim(int i) const { return shape[i]; }
  int64_t size() const {
    int64_t n = 1;
    for (int64_t s : shape) n *= s;
    return n;
  }
  int64_t bytes() const { return size() * static_cast<int64_t>(sizeof(T)); }
  bool empty() const { return data == nullptr || size() == 0; }

  // Element access; Requires: as many indices as dimensions.
  template <typename... I>
  T& operator()(I... i) const {
    static_assert(sizeof...(I) == N);
    const std::array<int64_t, N> index{static_cast<int64_t>(i)...};
    int64_t offset = 0;
    for (int k = 0; k < N; ++k) {
      assert(index[k] >= 0 && index[k] < shape[k]);
      offset = offset * shape[k] + index[k];
    }
    return data[offset];
  }

  // The sub-view at index i of the outermost dimension.
  View<T, N - 1> operator[](int64_t i) const
    requires(N > 1)
  {
    std::array<int64_t, N - 1> s{};
    int64_t stride = 1;
    for (int k = 1; k < N; ++k) {
      s[k - 1] = shape[k];
      stride *= shape[k];
    }
    return {data + i * stride, s};
  }
  T& operator[](int64_t i) const
    requires(N == 1)
  {
    assert(i >= 0 && i < shape[0]);
    return data[i];
  }

  // Rows [begin, begin + count) of the outermost dimension.
  View Slice(int64_t begin, int64_t count) const {
    assert(begin >= 0 && count >= 0 && begin + count <= shape[0]);
    int64_t stride = 1;
    for (int k = 1; k < N; ++k) stride *= shape[k];
    View v = *this;
    v.data = data + begin * stride;
    v.shape[0] = count;
    return v;
  }

  T* begin() const
    requires(N == 1)
  {
    return data;
  }
  T* end() const
    requires(N == 1)
  {
    return data + shape[0];
  }
};

}  // namespace asynctls
