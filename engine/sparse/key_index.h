// SPDX-License-Identifier: Apache-2.0
// KeyIndex: memory of the key codes of all sparse layers, and of the tables that make them. One
// allocation, indexed by slot like the KV it describes; never offloaded. The AppendKv op fills the
// codes, the selecting ops read them. Beside it, if asked for, the paper's own index.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/buffer.h"
#include "kernels/device/carver.h"
#include "kernels/ops.h"

namespace asynctls {

struct KeyIndexShape {
  int layers = 0;
  int first_layer = 0;  // layers below it always attend densely and have no codes
  int kv_heads = 0;     // G, of this rank
  int head_dim = 0;     // D
  bool bound = false;   // keep the paper's index too
  int bound_channels = 32;

  int SparseLayers() const { return layers > first_layer ? layers - first_layer : 0; }
  // Of the key codes, per token, all layers and heads.
  int64_t CodeBytesPerToken() const {
    return int64_t{SparseLayers()} * kv_heads * (FirstBytes() + SecondBytes());
  }
  // What a decode row reads of the code index per token and head, and of the bound index per block
  // and per candidate token.
  int64_t FirstBytes() const { return kCodeWords * sizeof(uint32_t); }
  int64_t SecondBytes() const { return kCodeWords * sizeof(uint32_t); }
  int64_t RangeBytes() const { return int64_t{2} * head_dim * sizeof(bf16); }
  int64_t ChannelBytes() const { return bound_channels / 2 + 2 * sizeof(bf16); }
};

class KeyIndex {
 public:
  // Bytes of the whole index for `slots` blocks.
  static int64_t Bytes(const KeyIndexShape& shape, int64_t slots);
  // Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<KeyIndex> Create(const KeyIndexShape& shape,
                                         int64_t slots,
                                         MemoryKind kind);

  // Sends one layer's table from host memory: [G, D, r], [G, r], [G, D, r]. Until then the layer
  // has none: its keys are not coded. Requires: layer >= first_layer.
  template <class B>
  void SetTable(B& ops, int layer, const KeyCodeTable& table) {
    Layer& to = layers_[layer - shape_.first_layer];
    Send(ops, table.encode, to.encode);
    Send(ops, table.offset, to.offset);
    Send(ops, table.turn, to.turn);
    to.has_table = true;
  }
  // Sends one layer's channels, [G, bound_channels]. Requires: shape().bound.
  template <class B>
  void SetChannels(B& ops, int layer, View<const int32_t, 2> channels) {
    Send(ops, channels, layers_[layer - shape_.first_layer].channels);
  }

  // Requires: layer >= first_layer.
  KeyCodeTable table(int layer) const;
  KeyCodes codes(int layer) const { return layers_[layer - shape_.first_layer].codes; }
  BoundIndex bound(int layer) const;

  const KeyIndexShape& shape() const { return shape_; }

 private:
  struct Layer {
    KeyCodes codes;
    View<float, 3> encode;
    View<float, 2> offset;
    View<float, 3> turn;
    bool has_table = false;
    View<bf16, 4> range;
    View<uint8_t, 4> channel_code;
    View<bf16, 4> channel_step;
    View<int32_t, 2> channels;
  };
  static std::vector<Layer> Carve(const KeyIndexShape& shape, int64_t slots, Carver& carver);
  template <class B, typename T, int N>
  static void Send(B& ops, const View<const T, N>& from, const View<T, N>& to) {
    assert(from.shape == to.shape);
    ops.Upload(to.data, from.data, from.bytes());
  }

  KeyIndexShape shape_;
  Buffer arena_;
  std::vector<Layer> layers_;  // from first_layer on
};

}  // namespace asynctls
