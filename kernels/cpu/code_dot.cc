// SPDX-License-Identifier: Apache-2.0
// Eight directions of a token are brought side by side by two rounds of unpacking, then multiplied
// four at a time: 4 loads, 8 shuffles and 12 bit operations are shared by the four heads, which add
// 8 products each. Built for AVX-512 VNNI by itself, because Highway 1.0 has no such target.
#include "kernels/cpu/code_dot.h"

#include <cstring>

namespace asynctls {

void FillQuad(const int8_t* code8,
              const float* scale,
              int64_t heads,
              int64_t r1,
              int64_t r,
              QueryQuad* quad) {
  for (int64_t h = 0; h < kQuad; ++h) {
    const bool there = h < heads;
    quad->scale[h] = there ? scale[h] : std::numeric_limits<float>::quiet_NaN();
    quad->bias[0][h] = quad->bias[1][h] = 0;
    for (int64_t c = 0; c < r; ++c) {
      const int8_t x = there ? code8[h * r + c] : int8_t{0};
      quad->code8[h][c] = x;
      if (c < r1) quad->bias[0][h] += 15 * x;
      quad->bias[1][h] += 15 * x;
    }
    for (int64_t step = 0; step < r / 8; ++step) {
      const int8_t* x = quad->code8[h] + step * 8;
      const int8_t even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
      std::memcpy(&quad->packed[step][0][h], even, 4);
      std::memcpy(&quad->packed[step][1][h], odd, 4);
    }
  }
}

}  // namespace asynctls

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,bmi2")
#include <immintrin.h>
// gcc 12 takes its own undefined-on-purpose operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace asynctls {
namespace {

// acc[h][k] += code8 . code over 8 * steps directions. Lane 4 L + j of acc[h][k] is token
// 16 L + 4 k + j of the block.
inline void AddProducts(const uint8_t* __restrict codes /*[steps * 4][64]*/,
                        int64_t steps,
                        const int32_t (*__restrict packed)[2][kQuad],
                        __m512i acc[kQuad][4]) {
  const __m512i nibble = _mm512_set1_epi8(15);
  for (int64_t step = 0; step < steps; ++step) {
    const __m512i a = _mm512_loadu_si512(codes + step * 256);
    const __m512i b = _mm512_loadu_si512(codes + step * 256 + 64);
    const __m512i c = _mm512_loadu_si512(codes + step * 256 + 128);
    const __m512i d = _mm512_loadu_si512(codes + step * 256 + 192);
    const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
    const __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
    const __m512i v[4] = {_mm512_unpacklo_epi16(ab0, cd0),
                          _mm512_unpackhi_epi16(ab0, cd0),
                          _mm512_unpacklo_epi16(ab1, cd1),
                          _mm512_unpackhi_epi16(ab1, cd1)};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const __m512i even = _mm512_and_si512(v[k], nibble);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(v[k], 4), nibble);
#pragma GCC unroll 4
      for (int h = 0; h < kQuad; ++h) {
        acc[h][k] = _mm512_dpbusd_epi32(acc[h][k], even, _mm512_set1_epi32(packed[step][0][h]));
        acc[h][k] = _mm512_dpbusd_epi32(acc[h][k], odd, _mm512_set1_epi32(packed[step][1][h]));
      }
    }
  }
}

// The largest score over the 64 tokens and the four heads, over r1 = 8 * steps directions.
inline float FullBlockScore(const uint8_t* __restrict first, int64_t steps, const QueryQuad& quad) {
  __m512i acc[kQuad][4] = {};
  AddProducts(first, steps, quad.packed, acc);
  __m512i m[kQuad];
  for (int h = 0; h < kQuad; ++h) {
    m[h] = _mm512_max_epi32(_mm512_max_epi32(acc[h][0], acc[h][1]),
                            _mm512_max_epi32(acc[h][2], acc[h][3]));
  }
  // Transposed while it shrinks: lane h of every 128 bits is head h.
  const __m512i m01 =
      _mm512_max_epi32(_mm512_unpacklo_epi32(m[0], m[1]), _mm512_unpackhi_epi32(m[0], m[1]));
  const __m512i m23 =
      _mm512_max_epi32(_mm512_unpacklo_epi32(m[2], m[3]), _mm512_unpackhi_epi32(m[2], m[3]));
  const __m512i all =
      _mm512_max_epi32(_mm512_unpacklo_epi64(m01, m23), _mm512_unpackhi_epi64(m01, m23));
  const __m256i half =
      _mm256_max_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  const __m128i sum =
      _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i bias = _mm_load_si128(reinterpret_cast<const __m128i*>(quad.bias[0]));
  const __m128 score = _mm_mul_ps(_mm_cvtepi32_ps(_mm_sub_epi32(_mm_add_epi32(sum, sum), bias)),
                                  _mm_load_ps(quad.scale));
  // max_ps returns its second operand where the first is NaN: heads that are left out.
  __m128 best = _mm_max_ps(score, _mm_set1_ps(kLowest));
  best = _mm_max_ps(best, _mm_movehl_ps(best, best));
  best = _mm_max_ss(best, _mm_movehdup_ps(best));
  return _mm_cvtss_f32(best);
}

// Stores four vectors in the lane order of AddProducts in the order of positions.
inline void StoreInOrder(const __m512 v[4], float* x) {
  const __m512 ab0 = _mm512_shuffle_f32x4(v[0], v[1], 0x44);
  const __m512 ab1 = _mm512_shuffle_f32x4(v[0], v[1], 0xee);
  const __m512 cd0 = _mm512_shuffle_f32x4(v[2], v[3], 0x44);
  const __m512 cd1 = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
  _mm512_storeu_ps(x, _mm512_shuffle_f32x4(ab0, cd0, 0x88));
  _mm512_storeu_ps(x + 16, _mm512_shuffle_f32x4(ab0, cd0, 0xdd));
  _mm512_storeu_ps(x + 32, _mm512_shuffle_f32x4(ab1, cd1, 0x88));
  _mm512_storeu_ps(x + 48, _mm512_shuffle_f32x4(ab1, cd1, 0xdd));
}

}  // namespace

bool HasVnni() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("bmi2");
  return has;
}

void ScoreBlocksVnni(const uint8_t* codes,
                     int64_t stride,
                     const int32_t* slots,
                     int64_t count,
                     int64_t r1,
                     const QueryQuad& quad,
                     float* best) {
  constexpr int64_t kAhead =
      6;  // blocks: slots lie anywhere, so the hardware does not see it coming
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* ahead = codes + slots[i + kAhead < count ? i + kAhead : i] * stride;
    for (int64_t j = 0; j < r1 / 2; ++j) __builtin_prefetch(ahead + j * 64);
    const float score = FullBlockScore(codes + slots[i] * stride, r1 / 8, quad);
    if (score > best[i]) best[i] = score;
  }
}

void BlockLogitsVnni(const uint8_t* first,
                     int64_t r1,
                     const uint8_t* second,
                     int64_t r2,
                     const QueryQuad& quad,
                     float* const logit[kQuad]) {
  __m512i acc[kQuad][4] = {};
  AddProducts(first, r1 / 8, quad.packed, acc);
  AddProducts(second, r2 / 8, quad.packed + r1 / 8, acc);
  for (int h = 0; h < kQuad; ++h) {
    const __m512i bias = _mm512_set1_epi32(quad.bias[1][h]);
    const __m512 scale = _mm512_set1_ps(quad.scale[h]);
    __m512 v[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const __m512i sum = _mm512_sub_epi32(_mm512_add_epi32(acc[h][k], acc[h][k]), bias);
      v[k] = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
    }
    StoreInOrder(v, logit[h]);
  }
}

}  // namespace asynctls
#pragma GCC pop_options
#else
namespace asynctls {

bool HasVnni() { return false; }
void ScoreBlocksVnni(
    const uint8_t*, int64_t, const int32_t*, int64_t, int64_t, const QueryQuad&, float*) {}
void BlockLogitsVnni(
    const uint8_t*, int64_t, const uint8_t*, int64_t, const QueryQuad&, float* const*) {}

}  // namespace asynctls
#endif
