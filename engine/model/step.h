// SPDX-License-Identifier: Apache-2.0
// Step: what one forward pass works on, as views of a packed buffer (engine/worker/step_inputs.h
// packs it from a plan).
#pragma once

#include <cstdint>

#include "engine/sparse/sparse_attention.h"
#include "kernels/device/view.h"

namespace asynctls {

struct Step {
  View<const int32_t, 1> ids;         // [T], as EmbedArgs::ids
  View<const int32_t, 1> last_token;  // [L]
  AttentionBatch attention;
};

}  // namespace asynctls
