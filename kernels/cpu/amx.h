// SPDX-License-Identifier: Apache-2.0
// The matrix unit of recent Intel cores (AMX, bf16): whether this process may use it, its tile
// registers' shape, and the one product both users (gemm_amx.cc, prefill_attend_amx.cc) are made
// of.
//
// A tile is 16 rows of 64 bytes. C (16x16 fp32) += A (16x32 bf16) * B, B being 32x16 with two
// consecutive rows interleaved: 16 rows of 16 pairs. Every element of C is one accumulator that
// takes its products in the order of k, so a row of C depends on its own row of A only: this is
// where the row invariance of Gemm and PrefillAttend comes from.
//
// The functions of this header compile only between ASYNCTLS_AMX_BEGIN and ASYNCTLS_AMX_END, which
// raise the instruction set for what lies between them; nothing from the standard library may be
// called there, lest its inline functions escape with instructions that other machines lack.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "hwy/base.h"
#include "kernels/device/dtype.h"

#define ASYNCTLS_AMX_BEGIN \
  HWY_PUSH_ATTRIBUTES("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,bmi2")
#define ASYNCTLS_AMX_END HWY_POP_ATTRIBUTES

namespace asynctls::amx {

inline constexpr int kRows = 16;         // rows of A and C, pairs of rows of B
inline constexpr int kDepth = 32;        // columns of A, rows of B
inline constexpr int kColumns = 16;      // columns of B and C
inline constexpr int kTileBytes = 1024;  // of each of them, when its rows lie side by side

// Whether processor and system let this process use AMX and the AVX-512 it is used with. The first
// call asks the system for permission (it holds for all threads).
bool Usable();

// The shapes of the eight tile registers, as the processor reads them.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {kRows, kRows, kRows, kRows, kRows, kRows, kRows, kRows};
};
inline constexpr TileShapes kFullTiles;

ASYNCTLS_AMX_BEGIN

// To be called by a thread before it uses tile registers, and Release after.
inline void Configure(const TileShapes& shapes = kFullTiles) {
  __asm__ volatile("ldtilecfg %0" : : "m"(shapes));  // gcc 12's own tells of 8 bytes only
}
inline void Release() { _tile_release(); }

// C (32x32: tile registers 0, 1 / 2, 3) += A (32 x `tiles` tiles) * B. Each pointer names a run of
// packed tiles, 1 KiB apart in the order of k: the upper and the lower 16 rows of A, the left and
// the right 16 columns of B.
inline void Accumulate2x2(
    const char* upper, const char* lower, const char* left, const char* right, int64_t tiles) {
  for (int64_t k = 0; k < tiles * kTileBytes; k += kTileBytes) {
    _tile_loadd(4, upper + k, 64);
    _tile_loadd(6, left + k, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + k, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, lower + k, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// As above with the upper rows only: C in registers 0, 1.
inline void Accumulate1x2(const char* upper, const char* left, const char* right, int64_t tiles) {
  for (int64_t k = 0; k < tiles * kTileBytes; k += kTileBytes) {
    _tile_loadd(4, upper + k, 64);
    _tile_loadd(6, left + k, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + k, 64);
    _tile_dpbf16ps(1, 4, 7);
  }
}

// C to and from memory, rows `stride` bytes apart; `lower`: registers 2, 3 too.
inline void ZeroSums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
inline void LoadSums(const float* sums, int64_t stride, bool lower) {
  _tile_loadd(0, sums, stride);
  _tile_loadd(1, sums + kColumns, stride);
  if (!lower) return;
  const char* low = reinterpret_cast<const char*>(sums) + kRows * stride;
  _tile_loadd(2, low, stride);
  _tile_loadd(3, low + kColumns * 4, stride);
}
inline void StoreSums(float* sums, int64_t stride, bool lower) {
  _tile_stored(0, sums, stride);
  _tile_stored(1, sums + kColumns, stride);
  if (!lower) return;
  char* low = reinterpret_cast<char*>(sums) + kRows * stride;
  _tile_stored(2, low, stride);
  _tile_stored(3, low + kColumns * 4, stride);
}

// Copies the columns [k, k + 32) of 16 rows, which lie `stride` bytes apart, into a tile A. Rows
// from `valid` on and columns from `depth` on count as zeros and are not read.
inline void PackRows(const bf16* rows, int64_t stride, int valid, int depth, char* out) {
  const auto mask = static_cast<__mmask32>((uint64_t{1} << (depth < kDepth ? depth : kDepth)) - 1);
  for (int i = 0; i < kRows; ++i) {
    const char* row = reinterpret_cast<const char*>(rows) + i * stride;
    _mm512_store_si512(out + 64 * i,
                       i < valid ? _mm512_maskz_loadu_epi16(mask, row) : _mm512_setzero_si512());
  }
}

// The same of the transpose into a tile B: dword j of its row i is dword i of row j.
inline void PackTransposed(const bf16* rows, int64_t stride, int valid, int depth, char* out) {
  const auto mask = static_cast<__mmask32>((uint64_t{1} << (depth < kDepth ? depth : kDepth)) - 1);
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) {
    const char* row = reinterpret_cast<const char*>(rows) + i * stride;
    r[i] = i < valid ? _mm512_maskz_loadu_epi16(mask, row) : _mm512_setzero_si512();
  }
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // r[i + j]: dword j of each 128-bit lane, of rows i..i+3
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {  // dword 4 * lane + j, lane by lane
    const __m512i low_even = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i high_even = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    const __m512i high_odd = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    _mm512_store_si512(out + 64 * j, _mm512_shuffle_i32x4(low_even, high_even, 0x88));
    _mm512_store_si512(out + 64 * (8 + j), _mm512_shuffle_i32x4(low_even, high_even, 0xdd));
    _mm512_store_si512(out + 64 * (4 + j), _mm512_shuffle_i32x4(low_odd, high_odd, 0x88));
    _mm512_store_si512(out + 64 * (12 + j), _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd));
  }
}

ASYNCTLS_AMX_END

}  // namespace asynctls::amx
