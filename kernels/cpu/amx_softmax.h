// SPDX-License-Identifier: Apache-2.0
// The softmax between the two products of attention on AMX tiles.
#pragma once

#include <cstdint>

#include "kernels/cpu/amx.h"

namespace asynctls::amx {

inline constexpr float kLog2E = 1.44269504f;

ASYNCTLS_AMX_BEGIN

// 2^x for x <= 0, relative error 1e-4 (the weights are rounded to bf16 next), 2^0 = 1.
inline __m512 Exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x01);  // x - floor(x)
  __m512 y = _mm512_fmadd_ps(f, _mm512_set1_ps(0.07944023841f), _mm512_set1_ps(0.22449433f));
  y = _mm512_fmadd_ps(f, y, _mm512_set1_ps(0.69606566f));
  y = _mm512_fmadd_ps(f, y, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, x);
}

// Softmax step of one row over the next 16 * kVectors positions, of which it sees the first `valid`
// (`kFull`: all; the weights of the others become zero). Vectors of scores are `stride` floats
// apart; weights exp2((score - largest) * factor) go to the row's place in the tiles A at
// `weights`; `largest` score and `sum` of weights are brought up to date (`first_step`: begun).
// Returns what earlier sums must be multiplied by. Requires: factor > 0.
template <int kVectors, bool kFull>
inline float SoftmaxRow(const float* scores,
                        int64_t stride,
                        int64_t valid,
                        bool first_step,
                        float factor,
                        char* weights,
                        float* largest,
                        float* sum) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 s[kVectors];
  __mmask16 seen[kVectors];
  __m512 top = lowest;
  for (int v = 0; v < kVectors; ++v) {
    const int64_t left = valid - 16 * v;
    seen[v] = kFull || left >= 16 ? 0xffff
              : left <= 0         ? 0
                                  : static_cast<__mmask16>((1u << left) - 1);
    s[v] = kFull ? _mm512_load_ps(scores + stride * v)
                 : _mm512_mask_load_ps(lowest, seen[v], scores + stride * v);
    top = _mm512_max_ps(top, s[v]);
  }
  const float before = first_step ? -__builtin_inff() : *largest;
  const float now = _mm512_reduce_max_ps(top);
  const float after = now > before ? now : before;
  const __m512 scale = _mm512_set1_ps(factor);
  const __m512 shift = _mm512_set1_ps(after * factor);
  __m512 total = _mm512_setzero_ps();
  for (int v = 0; v < kVectors; v += 2) {
    __m512 low = Exp2(_mm512_fmsub_ps(s[v], scale, shift));
    __m512 high = Exp2(_mm512_fmsub_ps(s[v + 1], scale, shift));
    if (!kFull) {
      low = _mm512_maskz_mov_ps(seen[v], low);
      high = _mm512_maskz_mov_ps(seen[v + 1], high);
    }
    total = _mm512_add_ps(total, _mm512_add_ps(low, high));
    _mm512_store_si512(weights + v / 2 * kTileBytes,
                       reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
  float change = 1.0f;
  if (after != before && !first_step) {
    change = _mm512_cvtss_f32(Exp2(_mm512_set1_ps((before - after) * factor)));
  }
  *sum = (first_step ? 0.0f : *sum * change) + _mm512_reduce_add_ps(total);
  *largest = after;
  return change;
}

ASYNCTLS_AMX_END

}  // namespace asynctls::amx
