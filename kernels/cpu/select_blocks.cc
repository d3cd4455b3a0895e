// SPDX-License-Identifier: Apache-2.0
// Level 1 on the CPU: chunks of blocks are scored on all threads, then every (row, KV head) keeps
// its best. Bit-identical to kernels/ref/select_blocks.cc.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/select_blocks.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/code_dot-inl.h"
#include "kernels/cpu/exact-inl.h"
#include "kernels/cpu/state.h"
#include "kernels/cpu/top_k-inl.h"
#include "kernels/ref/selection.h"

#ifndef ASYNCTLS_SELECT_BLOCKS_TYPES_
#define ASYNCTLS_SELECT_BLOCKS_TYPES_
namespace asynctls {

inline constexpr int64_t kPieceBlocks = 128;  // 64 KiB of codes, a few microseconds
// Blocks [begin, end) of row s for KV head g. The queries are turned anew by every piece: that is
// cheaper than a barrier. The piece that begins at 0 hands them on.
struct BlockPiece {
  int64_t s, g, begin, end;
};

}  // namespace asynctls
#endif

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {

// Turns the group's queries into quads; code8 [R, r] and scale [R] receive them too.
void TurnGroup(const SelectBlocksArgs& a,
               const BlockPiece& piece,
               int64_t heads,
               Scratch& scratch,
               int8_t* code8,
               float* scale,
               QueryQuad* quads) {
  const int64_t d_count = a.q.dim(2), r = a.code.turn.dim(2);
  float* x = scratch.Get<float>(4, d_count + r);
  for (int64_t h = 0; h < heads; ++h) {
    const bf16* q = a.q.data + (piece.s * a.q.dim(1) + piece.g * heads + h) * d_count;
    scale[h] = TurnHead(q, a.code, piece.g, a.scale, x, x + d_count, code8 + h * r);
  }
  for (int64_t h = 0; h < heads; h += kQuad) {
    FillQuad(code8 + h * r, scale + h, std::min<int64_t>(kQuad, heads - h), quads + h / kQuad);
  }
}

float BlockScore(const uint32_t* first, int64_t positions, const QueryQuad& quad) {
  float best = kLowest;
  for (int h = 0; h < kQuad; ++h) {
    if (std::isnan(quad.scale[h])) continue;
    HWY_ALIGN int32_t sum[kBlockPositions];
    Products(first, nullptr, quad.code8[h], sum);
    const int32_t top = *std::max_element(sum, sum + positions);
    best = std::max(best, static_cast<float>(2 * top - quad.bias[0][h]) * quad.scale[h]);
  }
  return best;
}

// keys[b] = rank key of block b for the piece's blocks; forced blocks above all.
void ScoreBlocks(const SelectBlocksArgs& a,
                 const BlockPiece& piece,
                 Scratch& scratch,
                 uint32_t* keys) {
  const DecodeRow& row = a.rows[piece.s];
  const int64_t groups = a.code.turn.dim(0), heads = a.q.dim(1) / groups;
  const int64_t r = kCodeDirections, quad_count = (heads + kQuad - 1) / kQuad;
  int8_t* code8 = scratch.Get<int8_t>(5, heads * r);
  float* scale = scratch.Get<float>(6, heads);
  QueryQuad* quads = scratch.Get<QueryQuad>(7, quad_count);
  TurnGroup(a, piece, heads, scratch, code8, scale, quads);
  if (piece.begin == 0) {
    std::copy(code8, code8 + heads * r, a.turned.code8[piece.s][piece.g * heads].data);
    std::copy(scale, scale + heads, a.turned.scale[piece.s].data + piece.g * heads);
    a.out.nan_heads(piece.s, piece.g) = static_cast<int32_t>(
        std::count_if(scale, scale + heads, [](float x) { return std::isnan(x); }));
  }
  const int64_t blocks = BlocksOf(row.length), stride = groups * kPartWords;
  const int32_t* slots = a.slot_table.data + row.lane * a.slot_table.dim(1) + piece.begin;
  const uint32_t* first = a.codes.first.data + piece.g * kPartWords;
  const int64_t count = piece.end - piece.begin;
  const int64_t full = HasVnni() ? row.length / kBlockPositions - piece.begin : 0;
  float best[kPieceBlocks];
  std::fill(best, best + count, kLowest);
  for (int64_t i = 0; i < quad_count; ++i) {
    const int64_t fast = std::min(full, count);
    ScoreBlocksVnni(first, stride, slots, fast, quads[i], best);
    for (int64_t b = fast; b < count; ++b) {
      const int64_t positions = PositionsIn(piece.begin + b, row.length);
      const float score = BlockScore(first + slots[b] * stride, positions, quads[i]);
      best[b] = std::max(best[b], score);
    }
  }
  for (int64_t b = 0; b < count; ++b) {
    const bool forced = BlockIsForced(piece.begin + b, blocks);
    keys[piece.begin + b] = forced ? kForcedKey : OrderedKey(best[b]);
  }
}

// Keeps the best of keys [0, blocks) of row s, head g; `keys` has room for padding.
void KeepBlocks(const SelectBlocksArgs& a, int64_t s, int64_t g, uint32_t* keys, Scratch& scratch) {
  const DecodeRow& row = a.rows[s];
  const int64_t blocks = BlocksOf(row.length);
  const int64_t padded = (blocks + kTopKPad - 1) / kTopKPad * kTopKPad;
  std::fill(keys + blocks, keys + padded, 0u);
  int32_t* out = a.out.blocks[s][g].data;
  int32_t& count = a.out.block_count(s, g);
  int32_t* chosen = scratch.Get<int32_t>(5, padded + kTopKPad);
  count = static_cast<int32_t>(TopK(
      keys, blocks, padded, row.max_blocks, scratch.Get<uint32_t>(4, padded + kTopKPad), chosen));
  std::copy(chosen, chosen + count, out);
  if (row.lag != DecodeRow::kExact) ExchangeLag(row, a.lag[row.lane][g].data, out, &count);
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {
HWY_EXPORT(ScoreBlocks);
HWY_EXPORT(KeepBlocks);

void CpuOps::SelectBlocks(const SelectBlocksArgs& a) {
  ThreadTeam& team = state_->team;
  const int64_t rows = a.rows.dim(0), groups = a.code.turn.dim(0);
  const int64_t width = (a.slot_table.dim(1) + 63) / 64 * 64;
  assert(a.code.turn.dim(2) == kCodeDirections);
  auto* keys = team.scratch().Get<uint32_t>(0, rows * groups * width);
  auto* pieces = team.scratch().Get<BlockPiece>(1, rows * groups * (width / kPieceBlocks + 1));
  int64_t count = 0;
  for (int64_t s = 0; s < rows; ++s) {
    const int64_t blocks = BlocksOf(a.rows[s].length);
    for (int64_t g = 0; g < groups; ++g) {
      if (blocks == 0) a.out.block_count(s, g) = a.out.nan_heads(s, g) = 0;
      for (int64_t b = 0; b < blocks; b += kPieceBlocks) {
        pieces[count++] = {s, g, b, std::min(b + kPieceBlocks, blocks)};
      }
    }
  }
  team.ParallelFor(count, [&](int64_t i, Scratch& scratch) {
    const BlockPiece& piece = pieces[i];
    uint32_t* row_keys = keys + (piece.s * groups + piece.g) * width;
    HWY_DYNAMIC_DISPATCH(ScoreBlocks)(a, piece, scratch, row_keys);
  });
  team.ParallelFor(rows * groups, [&](int64_t i, Scratch& scratch) {
    const int64_t s = i / groups, g = i % groups;
    if (a.rows[s].length == 0) return;
    HWY_DYNAMIC_DISPATCH(KeepBlocks)(a, s, g, keys + i * width, scratch);
  });
}

}  // namespace asynctls
#endif  // HWY_ONCE
