// SPDX-License-Identifier: Apache-2.0
// Matrix products on AMX tiles. Each element of the result is one accumulator that takes its
// products in the order of k, whatever the blocking, so the row contract of GemmArgs holds by
// construction.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/gemm.h"

namespace asynctls::amx {
namespace {

constexpr int64_t kBlock = 32;  // rows and columns of the register block
constexpr int64_t kBlockSums = kBlock * kBlock;

// Many rows: an item's piece of x, of w and its sums stay in L2 together.
constexpr int64_t kItemRows = 256;
constexpr int64_t kItemColumns = 512;
constexpr int64_t kItemDepth = 512 / kDepth;  // tiles
// Up to this many rows the weights are streamed past all of x.
constexpr int64_t kFewRows = 64;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The part of the result that one thread computes at a time.
struct Item {
  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;  // rounded up to whole blocks
};

ASYNCTLS_AMX_BEGIN

// `count` tiles of 16 rows of x or w, from tile `k` on, side by side.
void PackXRows(const Product& p, int64_t row, int64_t k, int64_t count, char* out) {
  const int valid = static_cast<int>(p.rows - row < kRows ? p.rows - row : kRows);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t d = (k + i) * kDepth;
    PackRows(p.x + row * p.depth + d,
             p.depth * 2,
             valid,
             static_cast<int>(p.depth - d),
             out + i * kTileBytes);
  }
}
void PackWRows(const Product& p, int64_t row, int64_t k, int64_t count, char* out) {
  const int valid = static_cast<int>(p.columns - row < kColumns ? p.columns - row : kColumns);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t d = (k + i) * kDepth;
    PackTransposed(p.w + row * p.depth + d,
                   p.depth * 2,
                   valid,
                   static_cast<int>(p.depth - d),
                   out + i * kTileBytes);
  }
}

// Writes a 32x32 block of sums to the result, cut to its borders.
void StoreBlock(const Product& p, const float* sums, int64_t row, int64_t column) {
  const int64_t rows = p.rows - row < kBlock ? p.rows - row : kBlock;
  const int64_t columns = p.columns - column < kBlock ? p.columns - column : kBlock;
  const auto mask = static_cast<uint32_t>((uint64_t{1} << columns) - 1);
  const auto low = static_cast<__mmask16>(mask);
  const auto high = static_cast<__mmask16>(mask >> 16);
  for (int64_t i = 0; i < rows; ++i) {
    const __m512 left = _mm512_load_ps(sums + i * kBlock);
    const __m512 right = _mm512_load_ps(sums + i * kBlock + kColumns);
    const int64_t at = (row + i) * p.columns + column;
    if (p.out_float != nullptr) {
      _mm512_mask_storeu_ps(p.out_float + at, low, left);
      _mm512_mask_storeu_ps(p.out_float + at + kColumns, high, right);
    } else {
      _mm512_mask_storeu_epi16(
          p.out_bf16 + at, mask, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(right, left)));
    }
  }
}

// Adds the `count` tiles of depth from `k` on to an item. `x`: packed rows, a run of `x_run` bytes
// for every 16. `w`: packed columns likewise. `sums` holds a block for every block of the item, or
// one if the depth is taken in one go.
void AccumulateItem(const Product& p,
                    const Item& item,
                    int64_t k,
                    int64_t count,
                    int64_t tiles,
                    const char* x,
                    int64_t x_run,
                    const char* w,
                    int64_t w_run,
                    float* sums) {
  constexpr int64_t kStride = kBlock * 4;
  for (int64_t n = 0; n < item.columns; n += kBlock) {
    const char* left = w + n / kColumns * w_run;
    for (int64_t m = 0; m < item.rows; m += kBlock) {
      const char* upper = x + m / kRows * x_run;
      const bool lower_rows = item.rows - m > kRows;
      if (k == 0) {
        ZeroSums();
      } else {
        LoadSums(sums, kStride, lower_rows);
      }
      if (lower_rows) {
        Accumulate2x2(upper, upper + x_run, left, left + w_run, count);
      } else {
        Accumulate1x2(upper, left, left + w_run, count);
      }
      StoreSums(sums, kStride, lower_rows);
      if (k + count == tiles) StoreBlock(p, sums, item.row + m, item.column + n);
      if (count < tiles) sums += kBlockSums;
    }
  }
}

// Few rows: x is packed already, w is packed or a pair of columns is packed at a time.
void StreamWeights(
    const Product& p, Item item, const char* x, int64_t tiles, char* packed, float* sums) {
  const int64_t run = tiles * kTileBytes;
  Configure();
  const int64_t end = item.column + item.columns;
  for (item.columns = kBlock; item.column < end; item.column += kBlock) {
    const char* w = reinterpret_cast<const char*>(p.w) + item.column / kColumns * run;
    if (!p.packed) {
      PackWRows(p, item.column, 0, tiles, packed);
      PackWRows(p, item.column + kColumns, 0, tiles, packed + run);
      w = packed;
    }
    AccumulateItem(p, item, 0, tiles, tiles, x, run, w, run, sums);
  }
  Release();
}

// Many rows: piece by piece of the depth, both operands packed into scratch if they are not yet.
void MultiplyItem(
    const Product& p, const Item& item, int64_t tiles, char* x, char* packed, float* sums) {
  Configure();
  for (int64_t k = 0; k < tiles; k += kItemDepth) {
    const int64_t count = tiles - k < kItemDepth ? tiles - k : kItemDepth;
    const int64_t run = count * kTileBytes;
    for (int64_t m = 0; m < item.rows; m += kRows) {
      PackXRows(p, item.row + m, k, count, x + m / kRows * run);
    }
    const char* w = packed;
    if (p.packed) {
      w = reinterpret_cast<const char*>(p.w) + (item.column / kColumns * tiles + k) * kTileBytes;
    } else {
      for (int64_t n = 0; n < item.columns; n += kColumns) {
        PackWRows(p, item.column + n, k, count, packed + n / kColumns * run);
      }
    }
    AccumulateItem(p, item, k, count, tiles, x, run, w, p.packed ? tiles * kTileBytes : run, sums);
  }
  Release();
}

ASYNCTLS_AMX_END

void MultiplyFew(const Product& p, int64_t tiles, ThreadTeam& team) {
  const int64_t run = tiles * kTileBytes;
  char* x = team.scratch().Get<char>(0, CeilDiv(p.rows, kRows) * run);
  for (int64_t m = 0; m < p.rows; m += kRows) PackXRows(p, m, 0, tiles, x + m / kRows * run);
  // Enough items to share, few enough to start quickly.
  const int64_t blocks = CeilDiv(p.columns, kBlock);
  const int64_t columns = CeilDiv(blocks, 4 * team.count()) * kBlock;
  team.ParallelFor(CeilDiv(p.columns, columns), [&](int64_t i, Scratch& scratch) {
    const int64_t left = CeilDiv(p.columns - i * columns, kBlock) * kBlock;
    const Item item{0, p.rows, i * columns, std::min(columns, left)};
    StreamWeights(p,
                  item,
                  x,
                  tiles,
                  scratch.Get<char>(1, p.packed ? 0 : 2 * run),
                  scratch.Get<float>(2, kBlockSums));
  });
}

void MultiplyMany(const Product& p, int64_t tiles, ThreadTeam& team) {
  const int64_t row_items = CeilDiv(p.rows, kItemRows);
  const int64_t items = row_items * CeilDiv(p.columns, kItemColumns);
  const int64_t run = std::min(tiles, kItemDepth) * kTileBytes;
  team.ParallelFor(items, [&](int64_t i, Scratch& scratch) {
    Item item{i % row_items * kItemRows, 0, i / row_items * kItemColumns, 0};
    item.rows = std::min(kItemRows, p.rows - item.row);
    item.columns = std::min(kItemColumns, CeilDiv(p.columns - item.column, kBlock) * kBlock);
    const int64_t blocks = CeilDiv(item.rows, kBlock) * (item.columns / kBlock);
    MultiplyItem(p,
                 item,
                 tiles,
                 scratch.Get<char>(1, kItemRows / kRows * run),
                 scratch.Get<char>(3, p.packed ? 0 : item.columns / kColumns * run),
                 scratch.Get<float>(2, (tiles > kItemDepth ? blocks : 1) * kBlockSums));
  });
}

}  // namespace

bool CanPack(int64_t columns, int64_t depth) {
  return columns % kBlock == 0 && depth % kDepth == 0;
}

void PackWeights(bf16* w, int64_t columns, int64_t depth, ThreadTeam& team) {
  const Product p{.x = nullptr,
                  .w = w,
                  .rows = 0,
                  .columns = columns,
                  .depth = depth,
                  .packed = false,
                  .out_bf16 = nullptr,
                  .out_float = nullptr};
  team.ParallelFor(columns / kColumns, [&](int64_t panel, Scratch& scratch) {
    const int64_t bytes = kColumns * depth * 2;
    char* packed = scratch.Get<char>(1, bytes);
    PackWRows(p, panel * kColumns, 0, depth / kDepth, packed);
    std::memcpy(w + panel * kColumns * depth, packed, static_cast<size_t>(bytes));
  });
}

void Multiply(const Product& p, ThreadTeam& team) {
  const int64_t tiles = CeilDiv(p.depth, kDepth);
  if (p.rows <= kFewRows) {
    MultiplyFew(p, tiles, team);
  } else {
    MultiplyMany(p, tiles, team);
  }
}

}  // namespace asynctls::amx
