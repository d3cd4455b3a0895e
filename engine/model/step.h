// SPDX-License-Identifier: Apache-2.0
// Step: what one forward pass works on, as views of a packed buffer (engine/worker/step_inputs.h
// packs it from a plan), which lie where the backend computes.
#pragma once

#include <array>
#include <cstdint>

#include "engine/sparse/sparse_attention.h"
#include "kernels/device/view.h"

namespace asynctls {

// The passes of a step: where the backend asks for it (kSplitPasses) its prompt rows and its decode
// rows; else all rows are in the first one.
inline constexpr int kPromptPass = 0;
inline constexpr int kDecodePass = 1;
inline constexpr int kPasses = 2;

struct Step {
  View<const int32_t, 1> ids;         // [T], as EmbedArgs::ids
  View<const int32_t, 1> last_token;  // [L]
  AttentionBatch attention;

  int64_t rows() const { return ids.dim(0); }
};
using Steps = std::array<Step, kPasses>;  // by pass; one without rows is not run

}  // namespace asynctls
