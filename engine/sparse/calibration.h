// SPDX-License-Identifier: Apache-2.0
// Calibration: from second moments of a model's queries and keys to the tables that code its keys
// (KeyCodeTable in kernels/ops.h), and the file that holds them, `key_codes.safetensors` beside the
// checkpoint. The mathematics is in README.md of this folder. Tables are host memory; moments add
// up where the backend computes. Any thread, one at a time per object.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/carver.h"
#include "kernels/device/mirror.h"
#include "kernels/ops.h"

namespace asynctls {

// The size of a model's tables.
struct KeyCodeShape {
  int layers = 0;
  int groups = 0;  // G, of the whole model
  int head_dim = 0;
  int channels = 32;  // of the bound selector; even

  bool operator==(const KeyCodeShape&) const = default;
};

// The tables of all layers.
class KeyCodeTables {
 public:
  // Zero tables. Requires: an even number of channels; neither they nor kCodeDirections
  // exceed head_dim.
  KeyCodeTables(const KeyCodeShape& shape, std::string model, std::string source);

  // Reads a file. `shape` and `model` (a fingerprint of the checkpoint) must be what the file was
  // made for. Errors: NOT_FOUND; INVALID_ARGUMENT naming file and tensor: not a safetensors file,
  // another version, shape or model, a missing tensor, a value that is not finite, a channel out of
  // range.
  static absl::StatusOr<KeyCodeTables> Read(const std::string& path,
                                            const KeyCodeShape& shape,
                                            const std::string& model);
  // Writes the whole file or nothing. Errors: as WriteTensors.
  absl::Status Write(const std::string& path) const;

  // The tables of KV heads [first, first + count): a tensor parallel rank's.
  KeyCodeTables Slice(int first, int count) const;

  const KeyCodeShape& shape() const { return shape_; }
  const std::string& model() const { return model_; }    // fingerprint
  const std::string& source() const { return source_; }  // what it was computed from

  // One layer, [G, D, r], [G, r], [G, D, r] and [G, channels].
  View<float, 3> encode(int layer);
  View<float, 2> offset(int layer);
  View<float, 3> turn(int layer);
  View<int32_t, 2> channels(int layer);
  KeyCodeTable table(int layer) const;
  View<const int32_t, 2> channels(int layer) const;

 private:
  struct Layer {
    std::vector<float> encode, offset, turn;
    std::vector<int32_t> channels;
  };

  KeyCodeShape shape_;
  std::string model_, source_;
  std::vector<Layer> layers_;
};

// Accumulates moments and turns them into tables.
class Calibrator {
 public:
  // `kind`: where the backend computes. Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<Calibrator> Create(const KeyCodeShape& shape, MemoryKind kind);

  // The Moments op to run for `count` rows of D values, `stride` apart, of one query head of KV
  // head `group`, or of its keys (after norm and rotation both). They add up over calls; the rows
  // are counted here.
  MomentsArgs Queries(int layer, int group, const bf16* x, int64_t count, int64_t stride);
  MomentsArgs Keys(int layer, int group, const bf16* x, int64_t count, int64_t stride);

  // Once all moments are in: brings them to the host.
  template <class B>
  void Collect(B& ops) const {
    sums_.Download(ops, 0, sums_.bytes());
    ops.Wait();
  }
  // Errors: FAILED_PRECONDITION naming layer and head that saw no rows, or not finite ones.
  absl::StatusOr<KeyCodeTables> Finish(std::string model, std::string source) const;

 private:
  struct Moments {
    int64_t count = 0;
    View<double, 2> second;  // [D, D], on the host, as all views here
    View<double, 1> first;   // [D]
  };
  struct Head {
    Moments queries, keys;
  };

  Calibrator() = default;
  void Carve(Carver& carver);
  MomentsArgs Add(Moments& m, const bf16* x, int64_t count, int64_t stride);
  absl::Status FinishHead(int layer, int group, KeyCodeTables& tables) const;

  KeyCodeShape shape_;
  Mirror sums_;
  std::vector<Head> heads_;  // [layer][group]
};

}  // namespace asynctls
