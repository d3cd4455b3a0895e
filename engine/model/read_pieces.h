// SPDX-License-Identifier: Apache-2.0
// Reading a checkpoint: many pieces of files, by several threads, to where the backend computes.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/safetensors.h"
#include "kernels/device/buffer.h"

namespace asynctls {

// `rows` runs of `row_bytes` bytes that lie `stride` bytes apart in a tensor's data, to be written
// to `to` without gaps.
struct ReadPiece {
  const Tensor* tensor;
  int64_t offset;  // of the first run in the tensor
  int64_t rows;
  int64_t row_bytes;
  int64_t stride;
  char* to;

  int64_t bytes() const { return rows * row_bytes; }
};

// Copies pinned memory to the device and waits for it.
using SendBytes = std::function<void(void* to, const void* from, int64_t bytes)>;

// Reads all pieces, whose `to` is memory of `kind`. Into host memory the threads read directly;
// else each has a pinned buffer that it fills again and again, and `send` is called, on the calling
// thread, to bring it over. Logs progress every few seconds, and the rate at the end. Errors:
// RESOURCE_EXHAUSTED; DATA_LOSS naming a file that cannot be read.
absl::Status ReadPieces(const std::vector<ReadPiece>& pieces,
                        const TensorSource& source,
                        MemoryKind kind,
                        const SendBytes& send);

}  // namespace asynctls
