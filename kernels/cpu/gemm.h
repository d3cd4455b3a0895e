// SPDX-License-Identifier: Apache-2.0
// The three ways to a matrix product, chosen by what the machine has (kernels/cpu/gemm.cc): AMX
// tiles, oneDNN, or fp32 vectors. Each keeps the row contract of GemmArgs by its own means.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cpu/thread_team.h"
#include "kernels/device/dtype.h"

namespace asynctls {

// out = x * w^T. Exactly one of `out_bf16` and `out_float` is set.
struct Product {
  const bf16* x;  // [rows, depth]
  const bf16* w;  // [columns, depth], or packed
  int64_t rows;
  int64_t columns;
  int64_t depth;
  bool packed;  // w has been through PackWeights
  bf16* out_bf16;
  float* out_float;  // [rows, columns]
};

namespace amx {

// Whether a weight of this shape can be packed without growing.
bool CanPack(int64_t columns, int64_t depth);
// Rewrites w [columns, depth] in place: 16 rows at a time become tiles B, in the order of k.
void PackWeights(bf16* w, int64_t columns, int64_t depth, ThreadTeam& team);
// Any shape, packed or not (row-major weights are packed on the way, panel by panel).
void Multiply(const Product& p, ThreadTeam& team);

}  // namespace amx

// bf16 products of oneDNN. Rows go through it in pieces of two fixed sizes whose results are equal
// bit for bit, the last one padded: oneDNN chooses its order of summation by the number of rows.
class OneDnn {
 public:
  OneDnn();
  ~OneDnn();
  // Whether the machine has what bf16 products of oneDNN need.
  bool usable() const;
  void Multiply(const Product& p, ThreadTeam& team);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// fp32 vectors (Highway), any machine.
void MultiplyFp32(const Product& p, ThreadTeam& team);

}  // namespace asynctls
