// SPDX-License-Identifier: Apache-2.0
// AttendRange on AMX tiles. Scores are keys (read where they lie) times the queries of the group as
// columns; the weights, as bf16 rows of their own, then meet the values, interleaved on the way.
// What is left of the time is waiting for memory, so the next rows are fetched in between, evenly:
// a fetch holds up what follows it while the core's fill buffers are taken.
#include <algorithm>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/amx_softmax.h"
#include "kernels/cpu/attend_range.h"

namespace asynctls::amx {
namespace {

// Positions at a time: these, the next ones and the interleaved values fit L1 together.
constexpr int kStep = 32;
constexpr int kTiles = kStep / kColumns;      // of scores, 16 positions each
constexpr int kWeightTiles = kStep / kDepth;  // of weights, 32 positions each

// Registers: 0 scores, 1 keys, 2 queries or values, 3 and 4 sums (a row per head), 5 weights.
TileShapes GroupShapes(int64_t group) {
  TileShapes shapes;
  for (int r : {3, 4, 5}) shapes.rows[r] = static_cast<uint8_t>(group);
  return shapes;
}

struct Workspace {
  char* queries;  // [dim / 32] tiles B
  float* scores;  // [4][16 heads][16 positions]
  char* weights;  // [2] tiles A
  char* values;   // [dim / 16][2] tiles B
  float* sums;    // [group][dim], columns as Interleave leaves them
};

ASYNCTLS_AMX_BEGIN

void PrepareQueries(const AttendHeads& a, int64_t dim, int64_t head, const Workspace& w) {
  for (int64_t k = 0; k < dim / kDepth; ++k) {
    PackTransposed(a.q + head * a.group * dim + k * kDepth,
                   dim * 2,
                   static_cast<int>(a.group),
                   kDepth,
                   w.queries + k * kTileBytes);
  }
}

void Scores(const bf16* rows, int64_t dim, const Workspace& w, Ahead& ahead) {
  alignas(64) float positions[kRows * kColumns];
  for (int t = 0; t < kTiles; ++t) {
    _tile_zero(0);
    for (int64_t k = 0; k < dim / kDepth; ++k) {
      ahead.Fetch(12);
      _tile_loadd(1, rows + t * kRows * 2 * dim + k * kDepth, dim * 4);
      _tile_loadd(2, w.queries + k * kTileBytes, 64);
      _tile_dpbf16ps(0, 1, 2);
    }
    _tile_stored(0, positions, 64);
    PackTransposed(reinterpret_cast<const bf16*>(positions),
                   64,
                   kRows,
                   kDepth,
                   reinterpret_cast<char*>(w.scores + t * kRows * kColumns));
  }
}

// Interleaves pairs of rows of values into tiles B; 32 columns make two tiles, each with four
// columns out of every eight. Rows from `count` on are zero.
void Interleave(const bf16* values, int64_t dim, int64_t count, char* out, Ahead& ahead) {
  constexpr int64_t kRun = kWeightTiles * kTileBytes;
  for (int64_t p = 0; p < kStep; p += 2) {
    ahead.Fetch(4);
    const bf16* even = values + p * 2 * dim;
    char* to = out + p / kDepth * kTileBytes + p % kDepth * 32;
    for (int64_t d = 0; d < dim; d += kDepth) {
      const __m512i zero = _mm512_setzero_si512();
      const __m512i low = p < count ? _mm512_loadu_si512(even + d) : zero;
      const __m512i high = p + 1 < count ? _mm512_loadu_si512(even + 2 * dim + d) : zero;
      _mm512_store_si512(to + d / kColumns * kRun, _mm512_unpacklo_epi16(low, high));
      _mm512_store_si512(to + (d / kColumns + 1) * kRun, _mm512_unpackhi_epi16(low, high));
    }
  }
}

void AddValues(int64_t dim, bool first, const Workspace& w, Ahead& ahead) {
  constexpr int64_t kRun = kWeightTiles * kTileBytes;
  for (int64_t d = 0; d < dim; d += kDepth) {
    ahead.Fetch(24);
    float* sums = w.sums + d;
    if (first) {
      _tile_zero(3);
      _tile_zero(4);
    } else {
      _tile_loadd(3, sums, dim * 4);
      _tile_loadd(4, sums + kColumns, dim * 4);
    }
    const char* left = w.values + d / kColumns * kRun;
    for (int k = 0; k < kWeightTiles; ++k) {
      _tile_loadd(5, w.weights + k * kTileBytes, 64);
      _tile_loadd(2, left + k * kTileBytes, 64);
      _tile_dpbf16ps(3, 5, 2);
      _tile_loadd(2, left + kRun + k * kTileBytes, 64);
      _tile_dpbf16ps(4, 5, 2);
    }
    _tile_stored(3, sums, dim * 4);
    _tile_stored(4, sums + kColumns, dim * 4);
  }
}

// kStep positions of which the first `count` exist.
void AttendStep(const AttendHeads& a,
                const bf16* rows,
                int64_t dim,
                int64_t count,
                bool first,
                float* largest,
                float* sum,
                const Workspace& w,
                Ahead& ahead) {
  Scores(rows, dim, w, ahead);
  constexpr int64_t kStride = kRows * kColumns;
  const float factor = a.scale * kLog2E;
  for (int64_t h = 0; h < a.group; ++h) {
    const float* scores = w.scores + h * kColumns;
    char* weights = w.weights + h * 64;
    const float change =
        count == kStep ? SoftmaxRow<kTiles, true>(
                             scores, kStride, count, first, factor, weights, largest + h, sum + h)
                       : SoftmaxRow<kTiles, false>(
                             scores, kStride, count, first, factor, weights, largest + h, sum + h);
    if (change == 1.0f) continue;
    for (int64_t d = 0; d < dim; d += 16) {
      float* at = w.sums + h * dim + d;
      _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), _mm512_set1_ps(change)));
    }
  }
  Interleave(rows + dim, dim, count, w.values, ahead);
  AddValues(dim, first, w, ahead);
}

// Puts the columns of the sums back in order.
void StoreValues(const AttendHeads& a, int64_t dim, const Workspace& w, float* values) {
  for (int64_t i = 0; i < a.group * dim; i += kDepth) {
    for (int64_t four = 0; four < 4; ++four) {
      const float* low = w.sums + i + 4 * four;
      _mm_storeu_ps(values + i + 8 * four, _mm_load_ps(low));
      _mm_storeu_ps(values + i + 8 * four + 4, _mm_load_ps(low + kColumns));
    }
  }
}

ASYNCTLS_AMX_END

}  // namespace

bool CanAttend(int64_t group, int64_t dim) {
  return Usable() && group <= kColumns && dim % kDepth == 0;
}

void AttendRange(const AttendHeads& a,
                 int64_t begin,
                 int64_t end,
                 float* parts,
                 int64_t stride,
                 Scratch& scratch) {
  const int64_t dim = a.dim();
  const int64_t query_bytes = dim * kColumns * 2, head_sums = a.group * dim;
  Workspace w{.queries = nullptr,
              .scores = scratch.Get<float>(1, kTiles * kRows * kColumns),
              .weights = scratch.Get<char>(4, kWeightTiles * kTileBytes),
              .values = scratch.Get<char>(5, kStep * dim * 2),
              .sums = nullptr};
  char* queries = scratch.Get<char>(0, a.heads * query_bytes);
  float* sums = scratch.Get<float>(6, a.heads * head_sums);
  const auto select = [&](int64_t head) {
    w.queries = queries + head * query_bytes;
    w.sums = sums + head * head_sums;
  };
  const TileShapes shapes = GroupShapes(a.group);
  Configure(shapes);
  for (int64_t head = 0; head < a.heads; ++head) {
    select(head);
    PrepareQueries(a, dim, head, w);
  }
  AttendPlace at{.head = 0, .p = begin};
  for (bool more = true; more;) {
    AttendPlace next = at;
    more = next.Advance(a, kStep, end);
    Ahead ahead = more ? FetchAhead(a, next, kStep) : Ahead();
    select(at.head);
    float* largest = parts + at.head * stride + head_sums;
    const int64_t count = std::min<int64_t>(kStep, end - at.p);
    AttendStep(a, at.Rows(a), dim, count, at.p == begin, largest, largest + a.group, w, ahead);
    at = next;
  }
  Release();
  for (int64_t head = 0; head < a.heads; ++head) {
    select(head);
    float* part = parts + head * stride;
    StoreValues(a, dim, w, part);
    for (int64_t h = 0; h < a.group; ++h) part[head_sums + h] *= a.scale;
  }
}

}  // namespace asynctls::amx
