// SPDX-License-Identifier: Apache-2.0
// The small integers the two halves exchange, named once.
#pragma once

#include <cstdint>

namespace asynctls {

// A logical block: `block_positions` consecutive positions of one sequence, global over all ranks.
using BlockId = uint32_t;
// A seat of the batch on every rank: in [0, max_lanes).
using Lane = uint32_t;
using Token = uint32_t;

}  // namespace asynctls
