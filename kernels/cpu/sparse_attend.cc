// SPDX-License-Identifier: Apache-2.0
// Attention over selected tokens on the CPU. The rows of a (decode row, KV head) are gathered once
// for all query heads of the group, four at a time, in tiles of 64 tokens with an online softmax;
// the next tile is fetched behind the arithmetic of this one. Chunks of fixed length are merged in
// their order, so a result depends on neither threads nor batch.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sparse_attend.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/exact-inl.h"
#include "kernels/cpu/state.h"

#ifndef ASYNCTLS_SPARSE_ATTEND_TYPES_
#define ASYNCTLS_SPARSE_ATTEND_TYPES_
namespace asynctls {

inline constexpr int64_t kAttendTile = 64;    // tokens: 32 KiB of K and V at D = 128
inline constexpr int64_t kAttendChunk = 256;  // tokens of one work item
inline constexpr int64_t kHeadQuad = 4;

// Chunk `chunk` of row s, KV head g. `partial` [R padded to 4][D + 2]: the weighted sum of V, the
// largest logit, the sum of weights.
struct AttendChunk {
  int64_t s, g, chunk;
  float* partial;
};

}  // namespace asynctls
#endif

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {

inline void PrefetchRow(const bf16* row, int64_t values) {
  for (int64_t d = 0; d < values; d += 32) __builtin_prefetch(row + d, 0, 2);
}

// x[t][h] = q[h] . k[t] for four heads.
void TileLogits(const bf16* const* rows,
                const bf16* const* next,
                int64_t count,
                const float* HWY_RESTRICT q /*[4][D]*/,
                int64_t d_count,
                float* HWY_RESTRICT x /*[count][4]*/) {
  const hn::ScalableTag<float> df;
  const hn::RebindToUnsigned<decltype(df)> du;
  const hn::Rebind<uint16_t, decltype(df)> dh;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  for (int64_t t = 0; t < count; ++t) {
    PrefetchRow(next[t], d_count);
    const auto* k = reinterpret_cast<const uint16_t*>(rows[t]);
    auto a0 = hn::Zero(df), a1 = a0, a2 = a0, a3 = a0;
    for (int64_t d = 0; d < d_count; d += lanes) {
      const auto wide = hn::PromoteTo(du, hn::LoadU(dh, k + d));
      const auto kd = hn::BitCast(df, hn::ShiftLeft<16>(wide));
      a0 = hn::MulAdd(kd, hn::LoadU(df, q + d), a0);
      a1 = hn::MulAdd(kd, hn::LoadU(df, q + d_count + d), a1);
      a2 = hn::MulAdd(kd, hn::LoadU(df, q + 2 * d_count + d), a2);
      a3 = hn::MulAdd(kd, hn::LoadU(df, q + 3 * d_count + d), a3);
    }
#if HWY_TARGET == HWY_SCALAR
    x[t * 4] = hn::GetLane(a0);
    x[t * 4 + 1] = hn::GetLane(a1);
    x[t * 4 + 2] = hn::GetLane(a2);
    x[t * 4 + 3] = hn::GetLane(a3);
#else
    // Every 128 bits of `all` hold a part of the four sums.
    const hn::Repartition<double, decltype(df)> dd;
    const auto a01 = hn::Add(hn::InterleaveLower(df, a0, a1), hn::InterleaveUpper(df, a0, a1));
    const auto a23 = hn::Add(hn::InterleaveLower(df, a2, a3), hn::InterleaveUpper(df, a2, a3));
    const auto b01 = hn::BitCast(dd, a01), b23 = hn::BitCast(dd, a23);
    const auto all = hn::Add(hn::BitCast(df, hn::InterleaveLower(dd, b01, b23)),
                             hn::BitCast(df, hn::InterleaveUpper(dd, b01, b23)));
    HWY_ALIGN float part[HWY_MAX_BYTES / 4];
    hn::Store(all, df, part);
    const hn::Full128<float> d4;
    auto sum = hn::Load(d4, part);
    for (int64_t i = 4; i < lanes; i += 4) sum = hn::Add(sum, hn::Load(d4, part + i));
    hn::StoreU(sum, d4, x + t * 4);
#endif
  }
}

// The largest of x[t][h] * scale per head into top [4], which holds the largest so far.
void TileMax(const float* x, int64_t count, float scale, float* top) {
  for (int64_t t = 0; t < count; ++t) {
    for (int h = 0; h < 4; ++h) top[h] = std::max(top[h], x[4 * t + h] * scale);
  }
}

// x[t][h] = exp(x[t][h] * scale - top[h]); sum[h] += of them.
void TileExp(float* HWY_RESTRICT x, int64_t count, float scale, const float* top, float* sum) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < 4 * count; ++i) {
    x[i] = std::exp(x[i] * scale - top[i & 3]);
    sum[i & 3] += x[i];
  }
#else
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  HWY_ALIGN float four[HWY_MAX_BYTES / 4];
  for (int64_t i = 0; i < lanes; ++i) four[i] = top[i & 3] * kLog2E;
  const auto minus = hn::Load(df, four), factor = hn::Set(df, scale * kLog2E);
  auto total = hn::Zero(df);
  // The tile is padded to a multiple of 16 values by the caller, with -inf.
  for (int64_t i = 0; i < 4 * count; i += lanes) {
    const auto y = hn::Max(hn::MulSub(hn::LoadU(df, x + i), factor, minus), hn::Set(df, -126.0f));
    const auto n = hn::Floor(y);
    const auto scale2 =
        hn::BitCast(df, hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127))));
    const auto w = hn::Mul(Exp2Fraction(df, hn::Sub(y, n)), scale2);
    total = hn::Add(total, w);
    hn::StoreU(w, df, x + i);
  }
  hn::Store(total, df, four);
  for (int64_t i = 0; i < lanes; ++i) sum[i & 3] += four[i];
#endif
}

// acc[h][d] += sum_t w[t][h] * v[t][d] for dims [d, d + kVectors * lanes).
template <int kVectors>
HWY_INLINE void AddValues(const bf16* const* rows,
                          const bf16* const* next,
                          int64_t count,
                          const float* HWY_RESTRICT w,
                          int64_t d,
                          int64_t d_count,
                          float* HWY_RESTRICT acc /*[4][D + 2]*/) {
  const hn::ScalableTag<float> df;
  const hn::RebindToUnsigned<decltype(df)> du;
  const hn::Rebind<uint16_t, decltype(df)> dh;
  using V = hn::Vec<decltype(df)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  V sum[4][kVectors];
  for (int h = 0; h < 4; ++h) {
    for (int v = 0; v < kVectors; ++v) {
      sum[h][v] = hn::LoadU(df, acc + h * (d_count + 2) + d + v * lanes);
    }
  }
  for (int64_t t = 0; t < count; ++t) {
    PrefetchRow(next[t] + d_count + d, kVectors * lanes);
    const auto* row = reinterpret_cast<const uint16_t*>(rows[t]) + d_count + d;
    for (int v = 0; v < kVectors; ++v) {
      const auto wide = hn::PromoteTo(du, hn::LoadU(dh, row + v * lanes));
      const auto x = hn::BitCast(df, hn::ShiftLeft<16>(wide));
      for (int h = 0; h < 4; ++h) {
        sum[h][v] = hn::MulAdd(hn::Set(df, w[4 * t + h]), x, sum[h][v]);
      }
    }
  }
  for (int h = 0; h < 4; ++h) {
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sum[h][v], df, acc + h * (d_count + 2) + d + v * lanes);
    }
  }
}

// One tile for four heads. acc [4][D + 2] as AttendChunk::partial.
void AttendTile(const bf16* const* rows,
                const bf16* const* next,
                int64_t count,
                const float* q,
                int64_t d_count,
                float scale,
                float* acc) {
  HWY_ALIGN float x[4 * kAttendTile];
  TileLogits(rows, next, count, q, d_count, x);
  float top[4], sum[4];
  for (int h = 0; h < 4; ++h) top[h] = acc[h * (d_count + 2) + d_count];
  TileMax(x, count, scale, top);
  const int64_t padded = (count + 3) / 4 * 4;
  std::fill(x + 4 * count, x + 4 * padded, -std::numeric_limits<float>::infinity());
  for (int h = 0; h < 4; ++h) {
    float* head = acc + h * (d_count + 2);
    const float rescale = std::exp(head[d_count] - top[h]);  // 0 for the first tile
    if (rescale != 1.0f) {
      for (int64_t d = 0; d < d_count; ++d) head[d] *= rescale;
    }
    head[d_count] = top[h];
    sum[h] = head[d_count + 1] * rescale;
  }
  TileExp(x, padded, scale, top, sum);
  for (int h = 0; h < 4; ++h) acc[h * (d_count + 2) + d_count + 1] = sum[h];
  const auto lanes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>()));
  int64_t d = 0;
  for (; d + 4 * lanes <= d_count; d += 4 * lanes) {
    AddValues<4>(rows, next, count, x, d, d_count, acc);
  }
  for (; d < d_count; d += lanes) AddValues<1>(rows, next, count, x, d, d_count, acc);
}

void AttendOneChunk(const SparseAttendArgs& a, const AttendChunk& c, Scratch& scratch) {
  const int64_t d_count = a.q.dim(2), groups = a.kv.rows.dim(1), heads = a.q.dim(1) / groups;
  const int64_t padded_heads = (heads + kHeadQuad - 1) / kHeadQuad * kHeadQuad;
  const int64_t begin = c.chunk * kAttendChunk;
  const int64_t count = std::min(kAttendChunk, a.selection.token_count(c.s, c.g) - begin);
  const int32_t* tokens = a.selection.tokens[c.s][c.g].data + begin;
  const int32_t* slots = a.kv.slot_table.data + a.rows[c.s].lane * a.kv.slot_table.dim(1);
  const bf16* rows[kAttendChunk + kAttendTile];
  for (int64_t t = 0; t < count; ++t) {
    const int64_t slot = slots[tokens[t] / kBlockPositions], p = tokens[t] % kBlockPositions;
    rows[t] = a.kv.rows.data + ((slot * groups + c.g) * kBlockPositions + p) * 2 * d_count;
    if (t < kAttendTile) PrefetchRow(rows[t], 2 * d_count);
  }
  std::fill(rows + count, rows + count + kAttendTile, rows[count - 1]);
  float* q = scratch.Get<float>(4, padded_heads * d_count);
  std::fill(q, q + padded_heads * d_count, 0.0f);
  Widen(a.q.data + (c.s * a.q.dim(1) + c.g * heads) * d_count, heads * d_count, q);
  for (int64_t h = 0; h < padded_heads; ++h) {
    float* head = c.partial + h * (d_count + 2);
    std::fill(head, head + d_count + 2, 0.0f);
    head[d_count] = -std::numeric_limits<float>::infinity();
  }
  for (int64_t t = 0; t < count; t += kAttendTile) {
    for (int64_t h = 0; h < heads; h += kHeadQuad) {
      AttendTile(rows + t,
                 rows + t + kAttendTile,
                 std::min(kAttendTile, count - t),
                 q + h * d_count,
                 d_count,
                 a.scale,
                 c.partial + h * (d_count + 2));
    }
  }
}

// Merges the chunks of (s, g) into the output. `partial` is of its first chunk.
void MergeChunks(
    const SparseAttendArgs& a, int64_t s, int64_t g, const float* partial, Scratch& scratch) {
  const int64_t d_count = a.q.dim(2), groups = a.kv.rows.dim(1), heads = a.q.dim(1) / groups;
  const int64_t padded_heads = (heads + kHeadQuad - 1) / kHeadQuad * kHeadQuad;
  const int64_t stride = padded_heads * (d_count + 2);
  const int64_t chunks = (a.selection.token_count(s, g) + kAttendChunk - 1) / kAttendChunk;
  for (int64_t h = 0; h < heads; ++h) {
    bf16* out = a.out.data + (s * a.q.dim(1) + g * heads + h) * d_count;
    const float* head = partial + h * (d_count + 2);
    float top = -std::numeric_limits<float>::infinity(), z = 0.0f;
    for (int64_t c = 0; c < chunks; ++c) top = std::max(top, head[c * stride + d_count]);
    float* sum = scratch.Get<float>(4, d_count);
    std::fill(sum, sum + d_count, 0.0f);
    for (int64_t c = 0; c < chunks; ++c) {
      const float f = std::exp(head[c * stride + d_count] - top);
      z += head[c * stride + d_count + 1] * f;
      for (int64_t d = 0; d < d_count; ++d) sum[d] += head[c * stride + d] * f;
    }
    const float inverse = chunks == 0 ? 0.0f : 1.0f / z;
    for (int64_t d = 0; d < d_count; ++d) out[d] = ToBf16(sum[d] * inverse);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {
HWY_EXPORT(AttendOneChunk);
HWY_EXPORT(MergeChunks);

void CpuOps::SparseAttend(const SparseAttendArgs& a) {
  ThreadTeam& team = state_->team;
  const int64_t rows = a.rows.dim(0), groups = a.kv.rows.dim(1), d_count = a.q.dim(2);
  const int64_t padded_heads = (a.q.dim(1) / groups + kHeadQuad - 1) / kHeadQuad * kHeadQuad;
  const int64_t stride = padded_heads * (d_count + 2);
  assert(d_count % 16 == 0);
  // first[i]: the number of chunks before (s, g) = i.
  auto* first = team.scratch().Get<int64_t>(0, rows * groups + 1);
  first[0] = 0;
  for (int64_t i = 0; i < rows * groups; ++i) {
    const int64_t count = a.selection.token_count(i / groups, i % groups);
    first[i + 1] = first[i] + (count + kAttendChunk - 1) / kAttendChunk;
  }
  const int64_t chunks = first[rows * groups];
  auto* partial = team.scratch().Get<float>(1, chunks * stride);
  auto* items = team.scratch().Get<AttendChunk>(2, chunks);
  for (int64_t i = 0; i < rows * groups; ++i) {
    for (int64_t c = first[i]; c < first[i + 1]; ++c) {
      items[c] = {i / groups, i % groups, c - first[i], partial + c * stride};
    }
  }
  const auto merge = [&](int64_t i, Scratch& scratch) {
    const int64_t s = i / groups, g = i % groups;
    HWY_DYNAMIC_DISPATCH(MergeChunks)(a, s, g, partial + first[i] * stride, scratch);
  };
  if (rows * groups >= team.count()) {  // enough work without splitting: one region
    team.ParallelFor(rows * groups, [&](int64_t i, Scratch& scratch) {
      for (int64_t c = first[i]; c < first[i + 1]; ++c) {
        HWY_DYNAMIC_DISPATCH(AttendOneChunk)(a, items[c], scratch);
      }
      merge(i, scratch);
    });
    return;
  }
  team.ParallelFor(chunks, [&](int64_t c, Scratch& scratch) {
    HWY_DYNAMIC_DISPATCH(AttendOneChunk)(a, items[c], scratch);
  });
  for (int64_t i = 0; i < rows * groups; ++i) merge(i, team.scratch());
}

}  // namespace asynctls
#endif  // HWY_ONCE
