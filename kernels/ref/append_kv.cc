// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "kernels/ref/exact.h"
#include "kernels/ref/math.h"
#include "kernels/ref/ref_ops.h"

namespace asynctls {
namespace {

// out = rope(norm(x)); halves (i, i + D/2) turn together.
void NormAndTurn(
    const bf16* x, View<const bf16, 1> weight, float eps, const float* cos_sin, bf16* out) {
  const int64_t half = weight.dim(0) / 2;
  std::vector<bf16> normed(static_cast<size_t>(2 * half));
  ref::RmsNormRow(x, weight.data, 2 * half, eps, normed.data());
  for (int64_t i = 0; i < half; ++i) {
    const float low = ToFloat(normed[i]);
    const float high = ToFloat(normed[i + half]);
    const float cosine = cos_sin[i];
    const float sine = cos_sin[i + half];
    out[i] = ToBf16(low * cosine - high * sine);
    out[i + half] = ToBf16(high * cosine + low * sine);
  }
}

void AppendCode(const AppendKvArgs& a, const bf16* key, int64_t slot, int g, int p) {
  std::vector<float> wide(static_cast<size_t>(a.code.encode.dim(1)));
  std::transform(key, key + wide.size(), wide.begin(), ToFloat);
  std::vector<uint8_t> code(static_cast<size_t>(a.code.encode.dim(2)));
  EncodeKey(wide.data(), a.code, g, code.data());
  StoreCode(code.data(), a.codes, slot, g, p);
}

// The queries of row t, as row t - turn_begin of `turned`.
void TurnQueries(const AppendKvArgs& a, int64_t t) {
  const int64_t s = t - a.turn_begin, heads = a.q_out.dim(1), group = heads / a.kv.rows.dim(1);
  std::vector<float> q(static_cast<size_t>(a.q_out.dim(2)));
  std::vector<float> product(static_cast<size_t>(a.code.turn.dim(2)));
  for (int64_t h = 0; h < heads; ++h) {
    const bf16* stored = a.q_out[t][h].data;
    std::transform(stored, stored + q.size(), q.begin(), ToFloat);
    a.turned.scale(s, h) = TurnQuery(q.data(),
                                     a.code,
                                     static_cast<int>(h / group),
                                     a.scale,
                                     product.data(),
                                     a.turned.code8[s][h].data);
  }
}

}  // namespace

void RefOps::AppendKv(const AppendKvArgs& a) {
  const int64_t dim = a.q_norm.dim(0);
  const int64_t q_heads = a.q_out.dim(1);
  const int64_t kv_heads = a.kv.rows.dim(1);
  for (int64_t t = 0; t < a.qkv.dim(0); ++t) {
    if (a.lanes[t] < 0) continue;
    const bf16* row = a.qkv[t].data;
    const float* cos_sin = a.cos_sin[t].data;
    for (int64_t h = 0; h < q_heads; ++h) {
      NormAndTurn(row + h * dim, a.q_norm, a.eps, cos_sin, &a.q_out(t, h, 0));
    }
    if (t >= a.turn_begin && t - a.turn_begin < a.turned.scale.dim(0)) TurnQueries(a, t);
    const int64_t slot = a.kv.slot_table(a.lanes[t], a.positions[t] / kBlockPositions);
    const int p = a.positions[t] % kBlockPositions;
    for (int64_t g = 0; g < kv_heads; ++g) {
      bf16* key = &a.kv.rows(slot, g, p, 0);
      NormAndTurn(row + (q_heads + g) * dim, a.k_norm, a.eps, cos_sin, key);
      std::copy_n(row + (q_heads + kv_heads + g) * dim, dim, key + dim);
      if (!a.code.encode.empty()) AppendCode(a, key, slot, static_cast<int>(g), p);
    }
  }
}

}  // namespace asynctls
