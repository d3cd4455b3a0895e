// SPDX-License-Identifier: Apache-2.0
// Buffer: the one owner of raw memory. Move-only; frees what it allocated. An arena is one Buffer;
// everything else holds Views into it. Allocation is zero-filled, 64-byte aligned and may fail,
// which is reported, never thrown.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/device/memory_kind.h"
#include "kernels/device/view.h"

namespace asynctls {

class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Errors: RESOURCE_EXHAUSTED with the number of bytes and the kind; UNIMPLEMENTED for a kind
  // this build has no runtime for.
  static absl::StatusOr<Buffer> Allocate(MemoryKind kind, int64_t bytes);

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  MemoryKind kind() const { return kind_; }

  // A view of `shape` starting `offset` bytes into the buffer. Requires: it fits.
  template <typename T, int N>
  View<T, N> ViewAt(int64_t offset, std::array<int64_t, N> shape) const {
    View<T, N> v(reinterpret_cast<T*>(static_cast<char*>(data_) + offset), shape);
    assert(offset >= 0 && offset + v.bytes() <= bytes_);
    return v;
  }

 private:
  Buffer(MemoryKind kind, void* data, int64_t bytes) : kind_(kind), data_(data), bytes_(bytes) {}

  MemoryKind kind_ = MemoryKind::kHost;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace asynctls
