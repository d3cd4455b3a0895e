// SPDX-License-Identifier: Apache-2.0
// Prompt attention on AMX tiles, in the manner of FlashAttention. The keys (transposed) and values
// of a lane's head are packed into tiles B once per call; then every work item takes up to 256 rows
// (positions x the query heads of one KV head) past them, 256 positions at a time: scores into L1,
// softmax in registers, weights back as bf16 tiles A.
//
// A row's scores, maxima and sums take the same operations in the same order whatever rows share
// its tiles; positions a row may not see have weight zero, which adds exactly nothing.
#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/amx_softmax.h"
#include "kernels/cpu/prefill_attend.h"

namespace asynctls::amx {
namespace {

constexpr int64_t kItemRows = 256;
constexpr int64_t kBlockRows = 32;   // rows that go through scores, softmax and values together
constexpr int64_t kPositions = 256;  // per tile of keys; borders are multiples of it
constexpr int64_t kScoreStride = kPositions + 16;    // floats; no power of two
constexpr int64_t kPackedBytes = int64_t{64} << 20;  // of keys and values packed at a time

// One KV head of one segment.
struct Head {
  const PrefillAttendArgs& a;
  PrefillSegment segment;
  int64_t g;
  int64_t dim;
  int64_t group;  // query heads per KV head
  int64_t end;    // positions that exist
  char* packed;   // per 256 positions: keys, then values
  int64_t tile_bytes() const { return kPositions * dim * 4; }
};

// What a thread holds for its item.
struct Workspace {
  char* q;         // [256 / 16][dim / 32] tiles A
  float* out;      // [256][dim], not yet divided by `sum`
  float* scores;   // [32][kScoreStride]
  char* weights;   // [2][256 / 32] tiles A
  float* largest;  // [256] of the scores so far
  float* sum;      // [256] of the weights so far
};

const bf16* KvRow(const Head& h, int64_t position) {
  const KvView& kv = h.a.kv;
  const int64_t slot =
      kv.slot_table.data[h.segment.lane * kv.slot_table.dim(1) + position / kBlockPositions];
  return kv.rows.data +
         ((slot * kv.rows.dim(1) + h.g) * kBlockPositions + position % kBlockPositions) * 2 * h.dim;
}

ASYNCTLS_AMX_BEGIN

// Interleaves 32 rows of values, 16 columns of them, into a tile B. Rows from `valid` on are zero.
void PackValues(const bf16* rows, int64_t stride, int64_t valid, char* out) {
  for (int64_t i = 0; i < kDepth; i += 2) {
    const auto* even = reinterpret_cast<const __m256i*>(rows + i * stride);
    const auto* odd = reinterpret_cast<const __m256i*>(rows + (i + 1) * stride);
    const __m512i low =
        i < valid ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(even)) : _mm512_setzero_si512();
    const __m512i high =
        i + 1 < valid ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(odd)) : _mm512_setzero_si512();
    _mm512_store_si512(out + i * 32, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

// Packs one block of positions. Keys: a run of dim / 32 tiles for every 16 positions; values: a
// run of 256 / 32 tiles for every 16 columns.
void PackBlock(const Head& h, int64_t block) {
  const int64_t first = block * kBlockPositions;
  const int64_t within = first % kPositions;
  const int64_t valid = h.end - first < kBlockPositions ? h.end - first : kBlockPositions;
  const bf16* rows = KvRow(h, first);
  char* keys = h.packed + first / kPositions * h.tile_bytes();
  char* values = keys + kPositions * h.dim * 2;
  const int64_t depth_tiles = h.dim / kDepth;
  for (int64_t p = 0; p < kBlockPositions; p += kColumns) {
    char* run = keys + (within + p) / kColumns * depth_tiles * kTileBytes;
    const int64_t left = valid - p;
    const int count = static_cast<int>(left < 0 ? 0 : left < kColumns ? left : kColumns);
    for (int64_t k = 0; k < depth_tiles; ++k) {
      PackTransposed(
          rows + p * 2 * h.dim + k * kDepth, h.dim * 4, count, kDepth, run + k * kTileBytes);
    }
  }
  constexpr int64_t kRun = kPositions / kDepth * kTileBytes;
  for (int64_t d = 0; d < h.dim; d += kColumns) {
    for (int64_t p = 0; p < kBlockPositions; p += kDepth) {
      PackValues(rows + p * 2 * h.dim + h.dim + d,
                 2 * h.dim,
                 valid - p,
                 values + d / kColumns * kRun + (within + p) / kDepth * kTileBytes);
    }
  }
}

// 32 rows from `row` on of the item, past the tile of keys that starts at position `tile`. Row r of
// the item sees the positions below first_length + r / group.
void AttendBlock(const Head& h,
                 const Workspace& w,
                 int64_t row,
                 int64_t rows,
                 int64_t first_length,
                 int64_t tile) {
  const int64_t last = row + kBlockRows < rows ? row + kBlockRows - 1 : rows - 1;
  int64_t columns = first_length + last / h.group - tile;  // seen by the last row, so by any
  if (columns <= 0) return;
  if (columns > kPositions) columns = kPositions;
  const int64_t depth_tiles = h.dim / kDepth;
  const int64_t run = depth_tiles * kTileBytes;
  const char* q = w.q + row / kRows * run;
  const char* keys = h.packed + tile / kPositions * h.tile_bytes();
  for (int64_t n = 0; n < columns; n += 2 * kColumns) {
    ZeroSums();
    const char* left = keys + n / kColumns * run;
    Accumulate2x2(q, q + run, left, left + run, depth_tiles);
    StoreSums(w.scores + n, kScoreStride * 4, true);
  }
  constexpr int64_t kWeightRun = kPositions / kDepth * kTileBytes;
  for (int64_t i = 0; i < kBlockRows; ++i) {
    const int64_t r = row + i;
    int64_t valid = r < rows ? first_length + r / h.group - tile : 0;
    char* weights = w.weights + i / kRows * kWeightRun + i % kRows * 64;
    if (valid <= 0) {  // nothing here for this row (or no such row)
      for (int64_t v = 0; v < kPositions / kDepth; ++v) {
        _mm512_store_si512(weights + v * kTileBytes, _mm512_setzero_si512());
      }
      continue;
    }
    const float* scores = w.scores + i * kScoreStride;
    const float factor = h.a.scale * kLog2E;
    constexpr int kVectors = kPositions / 16;
    const float change =
        valid >= kPositions
            ? SoftmaxRow<kVectors, true>(
                  scores, 16, valid, tile == 0, factor, weights, w.largest + r, w.sum + r)
            : SoftmaxRow<kVectors, false>(
                  scores, 16, valid, tile == 0, factor, weights, w.largest + r, w.sum + r);
    if (change == 1.0f) continue;
    for (int64_t d = 0; d < h.dim; d += 16) {
      float* out = w.out + r * h.dim + d;
      _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), _mm512_set1_ps(change)));
    }
  }
  const char* values = keys + kPositions * h.dim * 2;
  for (int64_t d = 0; d < h.dim; d += 2 * kColumns) {
    float* out = w.out + row * h.dim + d;
    if (tile == 0) {
      ZeroSums();
    } else {
      LoadSums(out, h.dim * 4, true);
    }
    const char* left = values + d / kColumns * kWeightRun;
    Accumulate2x2(w.weights,
                  w.weights + kWeightRun,
                  left,
                  left + kWeightRun,
                  (columns + kDepth - 1) / kDepth);
    StoreSums(out, h.dim * 4, true);
  }
}

// Rows of the group's query heads, position by position, as tiles A; zeros after `rows`.
void PackQueries(const Head& h, int64_t first, int64_t rows, char* out) {
  const int64_t run = h.dim / kDepth * kTileBytes;
  const int64_t heads = h.a.q.dim(1);
  for (int64_t r = 0; r < (rows + kBlockRows - 1) / kBlockRows * kBlockRows; ++r) {
    const bf16* q =
        h.a.q.data +
        ((h.segment.row + first + r / h.group) * heads + h.g * h.group + r % h.group) * h.dim;
    char* to = out + r / kRows * run + r % kRows * 64;
    for (int64_t k = 0; k < h.dim / kDepth; ++k) {
      _mm512_store_si512(to + k * kTileBytes,
                         r < rows ? _mm512_loadu_si512(q + k * kDepth) : _mm512_setzero_si512());
    }
  }
}

void StoreRows(const Head& h, const Workspace& w, int64_t first, int64_t rows) {
  const int64_t heads = h.a.q.dim(1);
  for (int64_t r = 0; r < rows; ++r) {
    bf16* out =
        h.a.out.data +
        ((h.segment.row + first + r / h.group) * heads + h.g * h.group + r % h.group) * h.dim;
    const __m512 inverse = _mm512_set1_ps(1.0f / w.sum[r]);
    for (int64_t d = 0; d < h.dim; d += 32) {
      const float* sums = w.out + r * h.dim + d;
      const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_load_ps(sums + 16), inverse),
                                                _mm512_mul_ps(_mm512_load_ps(sums), inverse));
      _mm512_storeu_si512(out + d, reinterpret_cast<__m512i>(both));
    }
  }
}

// `count` positions of the segment from its `first` on.
void AttendItem(const Head& h, const Workspace& w, int64_t first, int64_t count) {
  const int64_t rows = count * h.group;
  const int64_t first_length = h.segment.start + first + 1;
  Configure();
  PackQueries(h, first, rows, w.q);
  for (int64_t tile = 0; tile < first_length + count - 1; tile += kPositions) {
    for (int64_t row = 0; row < rows; row += kBlockRows) {
      AttendBlock(h, w, row, rows, first_length, tile);
    }
  }
  StoreRows(h, w, first, rows);
  Release();
}

ASYNCTLS_AMX_END

Workspace MakeWorkspace(Scratch& scratch, int64_t dim) {
  float* rows = scratch.Get<float>(4, 2 * kItemRows);
  return {.q = scratch.Get<char>(0, kItemRows * dim * 2),
          .out = scratch.Get<float>(1, kItemRows * dim),
          .scores = scratch.Get<float>(2, kBlockRows * kScoreStride),
          .weights = scratch.Get<char>(3, kBlockRows * kPositions * 2),
          .largest = rows,
          .sum = rows + kItemRows};
}

// KV heads [g, g + heads) of one segment.
void AttendHeads(const PrefillAttendArgs& a,
                 const PrefillSegment& segment,
                 int64_t g,
                 int64_t heads,
                 ThreadTeam& team) {
  const int64_t dim = a.q.dim(2);
  const int64_t end = segment.start + segment.count;
  const int64_t tiles = (end + kPositions - 1) / kPositions;
  const int64_t head_bytes = tiles * kPositions * dim * 4;
  char* packed = team.scratch().Get<char>(Scratch::kPlaces - 1, heads * head_bytes);
  auto head = [&](int64_t i) {
    return Head{
        a, segment, g + i, dim, a.q.dim(1) / a.kv.rows.dim(1), end, packed + i * head_bytes};
  };
  const int64_t blocks = (end + kBlockPositions - 1) / kBlockPositions;
  team.ParallelFor(
      heads * blocks, 8, [&](int64_t i, Scratch&) { PackBlock(head(i / blocks), i % blocks); });
  const int64_t positions = std::max<int64_t>(1, kItemRows / head(0).group);
  const int64_t items = (segment.count + positions - 1) / positions;
  team.ParallelFor(heads * items, [&](int64_t i, Scratch& scratch) {
    const int64_t first = (items - 1 - i / heads) * positions;  // the longest first
    AttendItem(head(i % heads),
               MakeWorkspace(scratch, dim),
               first,
               std::min(positions, segment.count - first));
  });
}

}  // namespace

void PrefillAttend(const PrefillAttendArgs& a, ThreadTeam& team) {
  const int64_t kv_heads = a.kv.rows.dim(1);
  for (const PrefillSegment& segment : a.segments) {
    if (segment.count == 0) continue;
    const int64_t bytes = (segment.start + segment.count) * a.q.dim(2) * 4;
    const int64_t heads = std::clamp<int64_t>(kPackedBytes / bytes, 1, kv_heads);
    for (int64_t g = 0; g < kv_heads; g += heads) {
      AttendHeads(a, segment, g, std::min(heads, kv_heads - g), team);
    }
  }
}

}  // namespace asynctls::amx
