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

inline constexpr int64_t kPieceBlocks = 128;  // of every KV head; some microseconds
// Blocks [begin, end) of row s, all KV heads.
struct BlockPiece {
  int64_t s, begin, end;
};

}  // namespace asynctls
#endif

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {

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

// keys[g][b] = rank key of block b for KV head g, for the piece's blocks; forced ones above all.
void ScoreBlocks(const SelectBlocksArgs& a,
                 const BlockPiece& piece,
                 Scratch& scratch,
                 uint32_t* keys,
                 int64_t width) {
  const DecodeRow& row = a.rows[piece.s];
  const int64_t groups = a.out.block_count.dim(1), heads = a.turned.scale.dim(1) / groups;
  const int64_t quad_count = (heads + kQuad - 1) / kQuad;
  QueryQuad* quads = scratch.Get<QueryQuad>(7, groups * quad_count);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t i = 0; i < quad_count; ++i) {
      const int64_t h = g * heads + i * kQuad;
      FillQuad(a.turned.code8[piece.s][h].data,
               a.turned.scale[piece.s].data + h,
               std::min<int64_t>(kQuad, heads - i * kQuad),
               quads + g * quad_count + i);
    }
  }
  const int64_t blocks = BlocksOf(row.length), count = piece.end - piece.begin;
  const int32_t* slots = a.slot_table.data + row.lane * a.slot_table.dim(1) + piece.begin;
  const uint32_t* first = a.codes.first.data;
  const int64_t full = HasVnni() ? row.length / kBlockPositions - piece.begin : 0;
  const int64_t fast = std::min(full, count);
  float* best = scratch.Get<float>(3, groups * kPieceBlocks);
  if (fast > 0) ScoreBlocksVnni(first, slots, fast, quads, groups, quad_count, best, kPieceBlocks);
  for (int64_t g = 0; g < groups; ++g) {
    float* of_head = best + g * kPieceBlocks;
    for (int64_t b = std::max<int64_t>(fast, 0); b < count; ++b) {
      const uint32_t* codes = first + (slots[b] * groups + g) * kPartWords;
      of_head[b] = kLowest;
      for (int64_t i = 0; i < quad_count; ++i) {
        const int64_t positions = PositionsIn(piece.begin + b, row.length);
        of_head[b] = std::max(of_head[b], BlockScore(codes, positions, quads[g * quad_count + i]));
      }
    }
    for (int64_t b = 0; b < count; ++b) {
      const bool forced = BlockIsForced(piece.begin + b, blocks);
      keys[g * width + piece.begin + b] = forced ? kForcedKey : OrderedKey(of_head[b]);
    }
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
  const int64_t heads = a.turned.scale.dim(1) / a.out.block_count.dim(1);
  const float* scale = a.turned.scale[s].data + g * heads;
  a.out.nan_heads(s, g) = static_cast<int32_t>(
      std::count_if(scale, scale + heads, [](float y) { return std::isnan(y); }));
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
  const int64_t rows = a.rows.dim(0), groups = a.out.block_count.dim(1);
  const int64_t width = (a.slot_table.dim(1) + 63) / 64 * 64;
  auto* keys = team.scratch().Get<uint32_t>(0, rows * groups * width);
  auto* pieces = team.scratch().Get<BlockPiece>(1, rows * (width / kPieceBlocks + 1));
  int64_t count = 0;
  for (int64_t s = 0; s < rows; ++s) {
    const int64_t blocks = BlocksOf(a.rows[s].length);
    for (int64_t g = 0; g < groups && blocks == 0; ++g) {
      a.out.block_count(s, g) = a.out.nan_heads(s, g) = 0;
    }
    for (int64_t b = 0; b < blocks; b += kPieceBlocks) {
      pieces[count++] = {s, b, std::min(b + kPieceBlocks, blocks)};
    }
  }
  team.ParallelFor(count, [&](int64_t i, Scratch& scratch) {
    uint32_t* row_keys = keys + pieces[i].s * groups * width;
    HWY_DYNAMIC_DISPATCH(ScoreBlocks)(a, pieces[i], scratch, row_keys, width);
  });
  team.ParallelFor(rows * groups, [&](int64_t i, Scratch& scratch) {
    const int64_t s = i / groups, g = i % groups;
    if (a.rows[s].length == 0) return;
    HWY_DYNAMIC_DISPATCH(KeepBlocks)(a, s, g, keys + i * width, scratch);
  });
}

}  // namespace asynctls
#endif  // HWY_ONCE
