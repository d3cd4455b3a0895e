// SPDX-License-Identifier: Apache-2.0
// Activations: the intermediate values of one forward pass, one arena for the largest. Views have
// room for all rows; a pass uses the first ones.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/rank_shape.h"
#include "kernels/device/buffer.h"
#include "kernels/device/carver.h"
#include "kernels/device/dtype.h"

namespace asynctls {

class Activations {
 public:
  // `rows`: of the largest pass (T). `logit_rows`: most rows whose logits are wanted at once (S).
  // `ranks`: how many vocabulary parts are gathered.
  struct Size {
    int64_t rows;
    int64_t logit_rows;
    int ranks;
  };
  static int64_t Bytes(const RankShape& shape, const Size& size);
  // Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<Activations> Create(const RankShape& shape,
                                            const Size& size,
                                            MemoryKind kind);

  View<bf16, 2> residual;        // [T, H], the residual stream
  View<bf16, 2> x;               // [T, H], input or output of a sub-layer
  View<bf16, 2> qkv;             // [T, (Q + 2G) D]
  View<bf16, 3> q;               // [T, Q, D], normed and rotated
  View<bf16, 2> attention;       // [T, Q D]
  View<bf16, 2> gate_up;         // [T, 2I]
  View<bf16, 2> inner;           // [T, I]
  View<float, 2> cos_sin;        // [T, D]
  View<float, 1> inv_frequency;  // [D / 2], the model's: for the backend to read
  View<bf16, 2> head_x;          // [S, H]
  View<bf16, 2> head_residual;   // [S, H]
  View<float, 2> logits;         // [S, V of this rank]
  View<float, 2> all_logits;     // [S, ranks x V]; empty for one rank

 private:
  void Carve(const RankShape& shape, const Size& size, Carver& carver);

  Buffer arena_;
};

}  // namespace asynctls
