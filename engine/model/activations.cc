// SPDX-License-Identifier: Apache-2.0
#include "engine/model/activations.h"

#include <utility>

namespace asynctls {

void Activations::Carve(const RankShape& s, const Size& size, Carver& carver) {
  const int64_t t = size.rows;
  residual = carver.Take<bf16, 2>({t, s.hidden});
  x = carver.Take<bf16, 2>({t, s.hidden});
  qkv = carver.Take<bf16, 2>({t, s.QkvWidth()});
  q = carver.Take<bf16, 3>({t, s.query_heads, s.head_dim});
  attention = carver.Take<bf16, 2>({t, s.AttentionWidth()});
  gate_up = carver.Take<bf16, 2>({t, int64_t{2} * s.intermediate});
  inner = carver.Take<bf16, 2>({t, s.intermediate});
  cos_sin = carver.Take<float, 2>({t, s.head_dim});
  inv_frequency = carver.Take<float, 1>({s.head_dim / 2});
  head_x = carver.Take<bf16, 2>({size.logit_rows, s.hidden});
  head_residual = carver.Take<bf16, 2>({size.logit_rows, s.hidden});
  logits = carver.Take<float, 2>({size.logit_rows, s.vocab_rows});
  if (size.ranks > 1) {
    all_logits = carver.Take<float, 2>({size.logit_rows, int64_t{size.ranks} * s.vocab_rows});
  }
}

int64_t Activations::Bytes(const RankShape& shape, const Size& size) {
  Activations measured;
  Carver carver;
  measured.Carve(shape, size, carver);
  return carver.bytes();
}

absl::StatusOr<Activations> Activations::Create(const RankShape& shape,
                                                const Size& size,
                                                MemoryKind kind) {
  absl::StatusOr<Buffer> arena = Buffer::Allocate(kind, Bytes(shape, size));
  if (!arena.ok()) return arena.status();
  Activations activations;
  activations.arena_ = *std::move(arena);
  Carver carver(activations.arena_);
  activations.Carve(shape, size, carver);
  return activations;
}

}  // namespace asynctls
