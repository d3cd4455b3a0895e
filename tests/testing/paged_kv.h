// SPDX-License-Identifier: Apache-2.0
// A random paged KV cache of one layer, its blocks scattered over the slots.
#pragma once

#include <algorithm>
#include <numeric>
#include <random>

#include "kernels/ops.h"
#include "tests/testing/tensor.h"

namespace asynctls::testing {

struct PagedKv {
  PagedKv(int64_t lanes, int64_t blocks, int64_t kv_heads, int64_t dim, uint32_t seed)
      : rows(Normal<bf16, 4>({lanes * blocks, kv_heads, kBlockPositions, 2 * dim}, seed)),
        slots({lanes, blocks}) {
    std::iota(slots.data(), slots.data() + slots.size(), 0);
    std::shuffle(slots.data(), slots.data() + slots.size(), std::mt19937(seed));
  }
  KvView view() const { return {rows.view(), slots.view()}; }

  Tensor<bf16, 4> rows;
  Tensor<int32_t, 2> slots;
};

}  // namespace asynctls::testing
