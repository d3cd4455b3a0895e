// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/ref_ops.h"

namespace asynctls {

void RefOps::StartHistory(const StartHistoryArgs& a) {
  const int64_t vocab = a.history.generated.dim(1);
  for (int64_t id = 0; id < vocab; ++id) a.history.generated(a.lane, id) = 0;
  for (int64_t w = 0; w < a.history.prompt.dim(1); ++w) a.history.prompt(a.lane, w) = 0;
  for (const uint32_t id : a.prompt_ids) {
    if (id < vocab) a.history.prompt(a.lane, id / 32) |= 1u << id % 32;
  }
}

}  // namespace asynctls
