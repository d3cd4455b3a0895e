// SPDX-License-Identifier: Apache-2.0
#include "engine/sparse/key_index.h"

#include <utility>

namespace asynctls {
std::vector<KeyIndex::Layer> KeyIndex::Carve(const KeyIndexShape& s,
                                             int64_t slots,
                                             Carver& carver) {
  const int64_t g = s.kv_heads;
  const int64_t d = s.head_dim;
  const int64_t r = kCodeDirections;
  const int64_t p = kBlockPositions;
  std::vector<Layer> layers(static_cast<size_t>(s.SparseLayers()));
  for (Layer& layer : layers) {
    layer.codes.first = carver.Take<uint32_t, 4>({slots, g, kCodeWords, p});
    layer.codes.second = carver.Take<uint32_t, 4>({slots, g, kCodeWords, p});
    layer.encode = carver.Take<float, 3>({g, d, r});
    layer.offset = carver.Take<float, 2>({g, r});
    layer.turn = carver.Take<float, 3>({g, d, r});
    if (!s.bound) continue;
    layer.range = carver.Take<bf16, 4>({slots, g, 2, d});
    layer.channel_code = carver.Take<uint8_t, 4>({slots, g, p, s.bound_channels / 2});
    layer.channel_step = carver.Take<bf16, 4>({slots, g, p, 2});
    layer.channels = carver.Take<int32_t, 2>({g, s.bound_channels});
  }
  return layers;
}

int64_t KeyIndex::Bytes(const KeyIndexShape& shape, int64_t slots) {
  Carver carver;
  Carve(shape, slots, carver);
  return carver.bytes();
}

absl::StatusOr<KeyIndex> KeyIndex::Create(const KeyIndexShape& shape,
                                          int64_t slots,
                                          MemoryKind kind) {
  absl::StatusOr<Buffer> arena = Buffer::Allocate(kind, Bytes(shape, slots));
  if (!arena.ok()) return arena.status();
  KeyIndex index;
  index.shape_ = shape;
  index.arena_ = *std::move(arena);
  Carver carver(index.arena_);
  index.layers_ = Carve(shape, slots, carver);
  return index;
}

KeyCodeTable KeyIndex::table(int layer) const {
  const Layer& from = layers_[layer - shape_.first_layer];
  if (!from.has_table) return {};
  return {.encode = from.encode, .offset = from.offset, .turn = from.turn};
}

BoundIndex KeyIndex::bound(int layer) const {
  const Layer& from = layers_[layer - shape_.first_layer];
  return {.range = from.range,
          .code = from.channel_code,
          .step = from.channel_step,
          .channels = from.channels};
}

}  // namespace asynctls
