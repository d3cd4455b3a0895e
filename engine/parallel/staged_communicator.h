// SPDX-License-Identifier: Apache-2.0
// StagedCommunicator: a communicator of host memory for ranks that compute on a device: what is
// summed or gathered goes through pinned memory. It works between any devices and waits for each
// call; ranks whose devices are linked want a communicator of their own.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/parallel/communicator.h"
#include "kernels/device/buffer.h"

namespace asynctls {

template <class B>
class StagedCommunicator : public Communicator {
 public:
  // Requires: `ops` outlives it.
  StagedCommunicator(B& ops, std::unique_ptr<Communicator> group)
      : ops_(ops), group_(std::move(group)) {}

  absl::Status AllReduceSum(View<bf16, 1> x) override {
    absl::Status status = Reserve(x.bytes());
    if (!status.ok()) return status;
    const View<bf16, 1> staged = staging_.ViewAt<bf16, 1>(0, x.shape);
    ops_.Download(staged.data, x.data, x.bytes());
    ops_.Wait();
    status = group_->AllReduceSum(staged);
    ops_.Upload(x.data, staged.data, x.bytes());
    return status;
  }

  absl::Status AllGather(View<const float, 2> part, View<float, 2> all) override {
    absl::Status status = Reserve(part.bytes() + all.bytes());
    if (!status.ok()) return status;
    const View<float, 2> from = staging_.ViewAt<float, 2>(0, part.shape);
    const View<float, 2> to = staging_.ViewAt<float, 2>(part.bytes(), all.shape);
    ops_.Download(from.data, part.data, part.bytes());
    ops_.Wait();
    status = group_->AllGather(from, to);
    ops_.Upload(all.data, to.data, all.bytes());
    return status;
  }

  // Of host memory.
  absl::Status Broadcast(View<int32_t, 1> x) override { return group_->Broadcast(x); }

 private:
  absl::Status Reserve(int64_t bytes) {
    ops_.Wait();  // the last call's bytes have left
    if (staging_.data() != nullptr && staging_.bytes() >= bytes) return absl::OkStatus();
    absl::StatusOr<Buffer> larger = Buffer::Allocate(MemoryKind::kPinned, bytes);
    if (larger.ok()) staging_ = *std::move(larger);
    return larger.status();
  }

  B& ops_;
  const std::unique_ptr<Communicator> group_;
  Buffer staging_;
};

}  // namespace asynctls
