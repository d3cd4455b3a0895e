// SPDX-License-Identifier: Apache-2.0
// Once per sequence with a penalty: two fills and a bit per id.
#include <algorithm>

#include "kernels/cpu/cpu_ops.h"

namespace asynctls {

void CpuOps::StartHistory(const StartHistoryArgs& a) {
  const View<uint16_t, 1> generated = a.history.generated[a.lane];
  const View<uint32_t, 1> prompt = a.history.prompt[a.lane];
  std::fill(generated.begin(), generated.end(), uint16_t{0});
  std::fill(prompt.begin(), prompt.end(), 0u);
  for (const uint32_t id : a.prompt_ids) {
    if (id < generated.dim(0)) prompt[id / 32] |= 1u << id % 32;
  }
}

}  // namespace asynctls
