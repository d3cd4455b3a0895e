// SPDX-License-Identifier: Apache-2.0
// The vector form of EncodeKey (kernels/ref/exact.h), bit-identical to it. Called by AppendKv.
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace asynctls {

// The r codes of a key of KV head g, one per byte, not packed. `product` is scratch of r floats.
void EncodeKeyCpu(const float* key /*[D]*/,
                  const KeyCodeTable& table,
                  int g,
                  float* product /*[r]*/,
                  uint8_t* code /*[r]*/);

}  // namespace asynctls
