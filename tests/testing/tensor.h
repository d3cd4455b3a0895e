// SPDX-License-Identifier: Apache-2.0
// Tensor: host memory with a shape, for tests and benchmarks of ops; and random contents for it.
// Pinned where there is a GPU, which then reads it as it is.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/device/buffer.h"
#include "kernels/device/dtype.h"
#include "kernels/device/view.h"

namespace asynctls::testing {

inline Buffer HostBuffer(int64_t bytes) {
  auto buffer = Buffer::Allocate(MemoryKind::kPinned, bytes);
  if (!buffer.ok()) buffer = Buffer::Allocate(MemoryKind::kHost, bytes);
  if (!buffer.ok()) std::abort();
  return *std::move(buffer);
}

template <typename T, int N>
class Tensor {
 public:
  explicit Tensor(std::array<int64_t, N> shape) {
    int64_t count = 1;
    for (int64_t s : shape) count *= s;
    buffer_ = HostBuffer(count * static_cast<int64_t>(sizeof(T)));
    view_ = buffer_.ViewAt<T, N>(0, shape);
  }

  const View<T, N>& view() const { return view_; }
  operator View<T, N>() const { return view_; }        // NOLINT
  operator View<const T, N>() const { return view_; }  // NOLINT
  T* data() const { return view_.data; }
  int64_t size() const { return view_.size(); }
  template <typename... I>
  T& operator()(I... i) const {
    return view_(i...);
  }

  void CopyFrom(const Tensor& other) { std::copy_n(other.data(), size(), data()); }
  void Fill(T value) { std::fill_n(data(), size(), value); }

 private:
  Buffer buffer_;
  View<T, N> view_;
};

// A vector whose elements are such memory.
template <typename T>
struct HostAllocator {
  using value_type = T;
  HostAllocator() = default;
  template <typename U>
  HostAllocator(const HostAllocator<U>&) {}  // NOLINT
  T* allocate(size_t n) {
    Buffer buffer = HostBuffer(static_cast<int64_t>(n * sizeof(T)));
    T* data = static_cast<T*>(buffer.data());
    Owned()[data] = std::move(buffer);
    return data;
  }
  void deallocate(T* data, size_t) { Owned().erase(data); }
  bool operator==(const HostAllocator&) const = default;

 private:
  static std::unordered_map<void*, Buffer>& Owned() {
    static auto& owned = *new std::unordered_map<void*, Buffer>;
    return owned;
  }
};
template <typename T>
using HostVector = std::vector<T, HostAllocator<T>>;

// One dimension, given values.
template <typename T>
Tensor<T, 1> List(std::initializer_list<T> values) {
  Tensor<T, 1> tensor({static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), tensor.data());
  return tensor;
}

inline float Value(float x) { return x; }
inline float Value(bf16 x) { return ToFloat(x); }
inline void Assign(float& to, float x) { to = x; }
inline void Assign(bf16& to, float x) { to = ToBf16(x); }

// Normally distributed values, the same for the same seed.
template <typename T, int N>
Tensor<T, N> Normal(std::array<int64_t, N> shape, uint32_t seed, float deviation = 1) {
  Tensor<T, N> tensor(shape);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  for (int64_t i = 0; i < tensor.size(); ++i) Assign(tensor.data()[i], normal(random));
  return tensor;
}

}  // namespace asynctls::testing
