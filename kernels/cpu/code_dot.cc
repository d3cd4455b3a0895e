// SPDX-License-Identifier: Apache-2.0
// A word of 16 tokens is split into planes of 4 directions by a shift and a mask, and each plane is
// multiplied for four heads at once: what is loaded and split is shared by them. Built for AVX-512
// VNNI by itself, because Highway 1.0 has no such target.
#include "kernels/cpu/code_dot.h"

#include <algorithm>
#include <cstring>

#include "hwy/base.h"

namespace asynctls {

void FillQuad(const int8_t* code8, const float* scale, int64_t heads, QueryQuad* quad) {
  for (int64_t h = 0; h < kQuad; ++h) {
    const bool there = h < heads;
    quad->scale[h] = there ? scale[h] : std::numeric_limits<float>::quiet_NaN();
    quad->bias[0][h] = quad->bias[1][h] = 0;
    for (int c = 0; c < kCodeDirections; ++c) {
      const int8_t x = there ? code8[h * kCodeDirections + c] : int8_t{0};
      quad->code8[h][c] = x;
      if (c < kRestDirections) quad->bias[0][h] += (c < kFineDirections ? 15 : 12) * x;
      quad->bias[1][h] += 15 * x;
    }
    for (int plane = 0; plane < kCodePlanes; ++plane) {
      std::memcpy(&quad->packed[plane][h], quad->code8[h] + 4 * plane, 4);
    }
  }
}

}  // namespace asynctls

#if defined(__x86_64__)
#include <immintrin.h>
HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,bmi2")

namespace asynctls {
namespace {

// acc[h] += code8 . plane for the four heads.
inline void AddPlane(__m512i plane, const int32_t packed[kQuad], __m512i acc[kQuad]) {
#pragma GCC unroll 4
  for (int h = 0; h < kQuad; ++h) {
    acc[h] = _mm512_dpbusd_epi32(acc[h], plane, _mm512_set1_epi32(packed[h]));
  }
}

// Both planes of a word of whole codes.
inline void AddWhole(__m512i word, const int32_t (*packed)[kQuad], __m512i acc[kQuad]) {
  const __m512i nibble = _mm512_set1_epi8(15);
  AddPlane(_mm512_and_si512(word, nibble), packed[0], acc);
  AddPlane(_mm512_and_si512(_mm512_srli_epi32(word, 4), nibble), packed[1], acc);
}

// The four planes of the coarse directions: high halves, times 4, with their low halves (or zeros).
inline void AddCoarse(__m512i high, __m512i low, const int32_t (*packed)[kQuad], __m512i* acc) {
  const __m512i upper = _mm512_set1_epi8(12), lower = _mm512_set1_epi8(3);
  const __m512i h[4] = {
      _mm512_slli_epi32(high, 2), high, _mm512_srli_epi32(high, 2), _mm512_srli_epi32(high, 4)};
  const __m512i l[4] = {
      low, _mm512_srli_epi32(low, 2), _mm512_srli_epi32(low, 4), _mm512_srli_epi32(low, 6)};
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const __m512i code =
        _mm512_or_si512(_mm512_and_si512(h[k], upper), _mm512_and_si512(l[k], lower));
    AddPlane(code, packed[k], acc);
  }
}

// The largest score over the 64 tokens and the four heads, from part 1.
inline float FullBlockScore(const uint32_t* __restrict first, const QueryQuad& quad) {
  __m512i m[kQuad];
#pragma GCC unroll 4
  for (int p = 0; p < kBlockPositions; p += 16) {
    __m512i acc[kQuad] = {};
    AddWhole(_mm512_loadu_si512(first + p), quad.packed, acc);
    AddCoarse(_mm512_loadu_si512(first + kBlockPositions + p),
              _mm512_setzero_si512(),
              quad.packed + 2,
              acc);
    for (int h = 0; h < kQuad; ++h) m[h] = p == 0 ? acc[h] : _mm512_max_epi32(m[h], acc[h]);
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

}  // namespace

bool HasVnni() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("bmi2");
  return has;
}

void ScoreBlocksVnni(const uint32_t* first,
                     const int32_t* slots,
                     int64_t count,
                     const QueryQuad* quads,
                     int64_t groups,
                     int64_t quad_count,
                     float* best,
                     int64_t stride) {
  const int64_t slot_words = groups * kPartWords;
  // Slots lie anywhere, so the hardware does not see the next one coming: about 4 KiB ahead.
  const int64_t ahead = std::max<int64_t>(1, 8 / groups);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t* codes = first + slots[i] * slot_words;
    const uint32_t* next = first + slots[std::min(i + ahead, count - 1)] * slot_words;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t j = 0; j < kPartWords; j += 16) {
        __builtin_prefetch(next + g * kPartWords + j);
      }
      float score = kLowest;
      for (int64_t quad = 0; quad < quad_count; ++quad) {
        const float x = FullBlockScore(codes + g * kPartWords, quads[g * quad_count + quad]);
        score = x > score ? x : score;
      }
      best[g * stride + i] = score;
    }
  }
}

void BlockLogitsVnni(const uint32_t* first,
                     const uint32_t* second,
                     const QueryQuad& quad,
                     float* const logit[kQuad]) {
  for (int p = 0; p < kBlockPositions; p += 16) {
    __m512i acc[kQuad] = {};
    AddWhole(_mm512_loadu_si512(first + p), quad.packed, acc);
    AddCoarse(_mm512_loadu_si512(first + kBlockPositions + p),
              _mm512_loadu_si512(second + p),
              quad.packed + 2,
              acc);
    AddWhole(_mm512_loadu_si512(second + kBlockPositions + p), quad.packed + 6, acc);
    for (int h = 0; h < kQuad; ++h) {
      const __m512i sum =
          _mm512_sub_epi32(_mm512_add_epi32(acc[h], acc[h]), _mm512_set1_epi32(quad.bias[1][h]));
      _mm512_storeu_ps(logit[h] + p,
                       _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(quad.scale[h])));
    }
  }
}

}  // namespace asynctls
HWY_POP_ATTRIBUTES
#else
namespace asynctls {

bool HasVnni() { return false; }
void ScoreBlocksVnni(
    const uint32_t*, const int32_t*, int64_t, const QueryQuad*, int64_t, int64_t, float*, int64_t) {
}
void BlockLogitsVnni(const uint32_t*, const uint32_t*, const QueryQuad&, float* const*) {}

}  // namespace asynctls
#endif
