// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/gemm.h"

#include <cassert>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/state.h"

namespace asynctls {
namespace {

enum Layout { kRowMajor = 0, kTiles = 1 };

Product MakeProduct(const View<const bf16, 2>& x, const Matrix& w) {
  assert(x.dim(1) == w.data.dim(1));
  return {.x = x.data,
          .w = w.data.data,
          .rows = x.dim(0),
          .columns = w.data.dim(0),
          .depth = w.data.dim(1),
          .packed = w.layout == kTiles,
          .out_bf16 = nullptr,
          .out_float = nullptr};
}

void Multiply(const Product& p, OneDnn& one_dnn, ThreadTeam& team) {
  if (p.rows == 0) return;
  if (amx::Usable()) {
    amx::Multiply(p, team);
  } else if (one_dnn.usable()) {
    one_dnn.Multiply(p, team);
  } else {
    MultiplyFp32(p, team);
  }
}

// to += x, rounded
void Add(const bf16* x, int64_t count, bf16* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = ToBf16(ToFloat(to[i]) + ToFloat(x[i]));
}

}  // namespace

void CpuOps::Prepare(Matrix& w) {
  if (w.layout != kRowMajor || !amx::Usable()) return;
  if (!amx::CanPack(w.data.dim(0), w.data.dim(1))) return;
  amx::PackWeights(w.data.data, w.data.dim(0), w.data.dim(1), state_->team);
  w.layout = kTiles;
}

void CpuOps::Gemm(const GemmArgs& a) {
  if (!a.norm.empty()) {
    RmsNorm({.x = a.x, .residual = {}, .weight = a.norm, .out = a.normed, .eps = a.eps});
  }
  Product p = MakeProduct(a.norm.empty() ? a.x : View<const bf16, 2>(a.normed), *a.w);
  p.out_bf16 = a.out.data;
  Multiply(p, state_->one_dnn, state_->team);
  if (!a.residual.empty()) {
    const int64_t width = a.out.dim(1);
    state_->team.ParallelFor(a.out.dim(0), RowGrain(width), [&](int64_t t, Scratch&) {
      Add(a.out[t].data, width, a.residual[t].data);
    });
  }
  if (!a.gated.empty()) SwiGlu({.gate_up = a.out, .out = a.gated});
}

void CpuOps::Logits(const LogitsArgs& a) {
  Product p = MakeProduct(a.x, *a.w);
  p.out_float = a.out.data;
  Multiply(p, state_->one_dnn, state_->team);
}

}  // namespace asynctls
