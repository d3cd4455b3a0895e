// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/buffer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/memory.h"

namespace asynctls {
namespace {

const char* Name(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::kHost:
      return "host";
    case MemoryKind::kPinned:
      return "pinned host";
    case MemoryKind::kDevice:
      return "device";
  }
  return "unknown";
}

}  // namespace

Buffer::~Buffer() {
  if (data_ != nullptr) FreeMemory(kind_, data_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : kind_(other.kind_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(kind_, other.kind_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

absl::StatusOr<Buffer> Buffer::Allocate(MemoryKind kind, int64_t bytes) {
  if (bytes < 0) return absl::InvalidArgumentError(absl::StrCat("buffer of ", bytes, " bytes"));
  if (!SupportsMemory(kind)) {
    return absl::UnimplementedError(absl::StrCat("this build has no ", Name(kind), " memory"));
  }
  void* data = AllocateMemory(kind, bytes == 0 ? 1 : bytes);
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes of ", Name(kind), " memory"));
  }
  return Buffer(kind, data, bytes);
}

}  // namespace asynctls
