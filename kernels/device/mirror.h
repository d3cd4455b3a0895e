// SPDX-License-Identifier: Apache-2.0
// Mirror: an arena that the host writes or reads and the backend computes on. Where the backend
// computes in host memory it is one arena, and sending and fetching do nothing; else there is one
// of pinned memory and one of the device's, of the same layout. Views are carved from the host's.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/device/buffer.h"
#include "kernels/device/view.h"

namespace asynctls {

class Mirror {
 public:
  Mirror() = default;

  // `kind`: where the backend computes (its kMemory). Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<Mirror> Create(MemoryKind kind, int64_t bytes) {
    Mirror mirror;
    absl::StatusOr<Buffer> host =
        Buffer::Allocate(kind == MemoryKind::kDevice ? MemoryKind::kPinned : kind, bytes);
    if (!host.ok()) return host.status();
    mirror.host_ = *std::move(host);
    if (kind != MemoryKind::kDevice) return mirror;
    absl::StatusOr<Buffer> device = Buffer::Allocate(kind, bytes);
    if (!device.ok()) return device.status();
    mirror.device_ = std::make_shared<Buffer>(*std::move(device));
    return mirror;
  }

  // Another one with host memory of its own and the same memory on the device, so that the host can
  // fill one while the other's copies are still on the stream. Requires: the backend does not
  // compute in host memory. Errors: as Create.
  absl::StatusOr<Mirror> Twin() const {
    absl::StatusOr<Buffer> host = Buffer::Allocate(MemoryKind::kPinned, bytes());
    if (!host.ok()) return host.status();
    Mirror twin;
    twin.host_ = *std::move(host);
    twin.device_ = device_;
    return twin;
  }

  const Buffer& host() const { return host_; }
  int64_t bytes() const { return host_.bytes(); }

  // The same window where the backend computes. Requires: `view` lies in host().
  template <typename T, int N>
  View<T, N> Device(View<T, N> view) const {
    if (Apart() && view.data != nullptr) {
      view.data = reinterpret_cast<T*>(static_cast<char*>(device_->data()) + Offset(view.data));
    }
    return view;
  }

  // Bring a piece to the device, or back, in the order of the backend's stream: the host's side
  // is done with once everything put on the stream so far is.
  template <class B>
  void Upload(B& ops, int64_t begin, int64_t end) const {
    if (!Apart() || begin >= end) return;
    ops.Upload(At(*device_, begin), At(host_, begin), end - begin);
  }
  template <class B>
  void Download(B& ops, int64_t begin, int64_t end) const {
    if (!Apart() || begin >= end) return;
    ops.Download(At(host_, begin), At(*device_, begin), end - begin);
  }
  template <class B, typename T, int N>
  void Upload(B& ops, const View<T, N>& view) const {
    if (!view.empty()) Upload(ops, Offset(view.data), Offset(view.data) + view.bytes());
  }
  template <class B, typename T, int N>
  void Download(B& ops, const View<T, N>& view) const {
    if (!view.empty()) Download(ops, Offset(view.data), Offset(view.data) + view.bytes());
  }

 private:
  bool Apart() const { return device_ != nullptr; }
  int64_t Offset(const void* host) const {
    return static_cast<const char*>(host) - static_cast<const char*>(host_.data());
  }
  static char* At(const Buffer& arena, int64_t offset) {
    return static_cast<char*>(arena.data()) + offset;
  }

  Buffer host_;
  std::shared_ptr<Buffer> device_;  // null where the host's is the backend's
};

// `values`, which lie in any host memory, where the backend reads them: they themselves where that
// is host memory, else a copy at the start of `arena`, which the next use overwrites in the order
// of the stream. Requires: `arena` is the backend's memory and large enough.
template <class B, typename T>
View<const T, 1> Lend(B& ops, const Buffer& arena, View<const T, 1> values) {
  if (arena.kind() != MemoryKind::kDevice || values.empty()) return values;
  ops.Upload(arena.data(), values.data, values.bytes());
  return {static_cast<const T*>(arena.data()), values.shape};
}

}  // namespace asynctls
