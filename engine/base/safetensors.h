// SPDX-License-Identifier: Apache-2.0
// The safetensors file format: reading (memory-mapped, every bound checked before a byte of data is
// used) and writing. A checkpoint is one file or the shards named by an index; both read as one
// TensorSource. What the tensors mean is the caller's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace asynctls {

// One tensor of a TensorSource. `bytes` stays valid as long as the source; it need not be aligned.
struct Tensor {
  std::string name;
  std::string dtype;  // as in the file: BF16, F32, I32, U8, ...
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
  const std::string* file = nullptr;  // for error messages
};

class TensorSource {
 public:
  TensorSource();
  ~TensorSource();
  TensorSource(TensorSource&&) noexcept;
  TensorSource& operator=(TensorSource&&) noexcept;

  // Maps one file. Errors: NOT_FOUND; INVALID_ARGUMENT naming file, tensor and limit: a header that
  // is longer than the file or 100 MB, bad JSON, unknown dtype, negative or overflowing shape,
  // bytes that are not shape x dtype, offsets outside the file, overlapping, or leaving a hole (the
  // format allows none: every byte after the header belongs to exactly one tensor).
  // A file that is truncated by somebody while it is mapped kills the process: checkpoints do not
  // change under a running server.
  static absl::StatusOr<TensorSource> OpenFile(const std::string& path);

  // `dir`/model.safetensors.index.json with its shards if there is an index, else
  // `dir`/model.safetensors. Errors: as OpenFile; also a shard name that leaves `dir`, a tensor
  // that the index does not list, lists for another shard, or lists and no shard has.
  static absl::StatusOr<TensorSource> OpenCheckpoint(const std::string& dir);

  // Reads bytes [offset, offset + bytes) of a tensor of this source to `to`, past the mapping: the
  // way for what is read once and is large. Any thread. Errors: DATA_LOSS naming the file.
  absl::Status Read(const Tensor& tensor, int64_t offset, int64_t bytes, void* to) const;

  // nullptr when there is none of that name.
  const Tensor* Find(absl::string_view name) const;
  // By name.
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  // __metadata__ of a single file; empty for a sharded checkpoint.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // The file or folder that was opened.
  const std::string& path() const { return path_; }

 private:
  class Mapping;
  absl::Status AddFile(const std::string& path);

  std::string path_;
  std::vector<std::unique_ptr<Mapping>> mappings_;
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// A tensor to be written; `bytes` must be shape x dtype.
struct TensorToWrite {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

// Writes `path` whole or not at all: to a temporary name beside it, flushed, then renamed. Errors:
// INVALID_ARGUMENT for a tensor whose bytes do not fit its shape; PERMISSION_DENIED when the file
// cannot be created; RESOURCE_EXHAUSTED when it cannot be written.
absl::Status WriteTensors(const std::string& path,
                          std::span<const TensorToWrite> tensors,
                          const std::map<std::string, std::string>& metadata);

}  // namespace asynctls
