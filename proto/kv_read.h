// SPDX-License-Identifier: Apache-2.0
// Adding up KvRead, field by field: over ranks, and over the steps of a request.
#pragma once

#include "asynctls/v1/worker.pb.h"

namespace asynctls {

inline void AddKvRead(v1::KvRead& sum, const v1::KvRead& read) {
  sum.set_blocks(sum.blocks() + read.blocks());
  sum.set_tokens(sum.tokens() + read.tokens());
  sum.set_bytes(sum.bytes() + read.bytes());
  sum.set_dense_blocks(sum.dense_blocks() + read.dense_blocks());
  sum.set_dense_tokens(sum.dense_tokens() + read.dense_tokens());
  sum.set_dense_bytes(sum.dense_bytes() + read.dense_bytes());
}

}  // namespace asynctls
