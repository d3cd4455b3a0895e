// SPDX-License-Identifier: Apache-2.0
// RowRead: the account of what one decode row read, beside what dense attention would have read.
// Counted per KV head of this rank and layer, then added up.
#pragma once

#include <cstdint>

#include "engine/kv/kv_layout.h"
#include "engine/sparse/key_index.h"

namespace asynctls {

struct RowRead {
  // `length`: positions the row may read.
  RowRead(const KvLayout& kv, int64_t length)
      : length(length),
        row_bytes(kv.RowBytes()),
        dense_blocks(BlocksFor(length) * kv.layers * kv.kv_heads),
        dense_tokens(length * kv.layers * kv.kv_heads),
        dense_bytes(dense_tokens * row_bytes) {}

  // One head of one layer that read everything.
  void AddDense() {
    blocks += BlocksFor(length);
    tokens += length;
    bytes += length * row_bytes;
  }

  // One head of one layer that read what was selected.
  struct Counts {
    int64_t touched;      // distinct blocks of the attended tokens
    int64_t tokens;       // attended
    int64_t kept_blocks;  // by level 1, the last block among them
    int64_t nan_heads;
  };
  void AddSparse(const Counts& c, const KeyIndexShape& index, bool bound) {
    blocks += c.touched;
    tokens += c.tokens;
    nan_heads += c.nan_heads;
    // The last block is always a candidate and not full.
    const int64_t candidates =
        c.kept_blocks * kBlockPositions - (BlocksFor(length) * kBlockPositions - length);
    bytes += c.tokens * row_bytes;
    bytes += bound ? BlocksFor(length) * index.RangeBytes() + candidates * index.ChannelBytes()
                   : length * index.FirstBytes() + candidates * index.SecondBytes();
  }

  int64_t length;
  int64_t row_bytes;
  int64_t blocks = 0;
  int64_t tokens = 0;
  int64_t bytes = 0;
  int64_t nan_heads = 0;
  int64_t dense_blocks;
  int64_t dense_tokens;
  int64_t dense_bytes;
};

}  // namespace asynctls
