// SPDX-License-Identifier: Apache-2.0
// Matrix products in fp32 vectors, for machines without bf16 products. An element of the result is
// one vector of partial sums over k and its horizontal sum, whichever block it is computed in.
#include <algorithm>

#include "kernels/cpu/gemm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm_fp32.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/highway.h>

#include "kernels/cpu/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls::HWY_NAMESPACE {

// sums[m][n] (row stride 4) of kRows rows of x, widened, by kColumns rows of w.
template <int kRows, int kColumns>
void DotBlock(const float* x, const bf16* w, int64_t depth, float* sums) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sum[kRows][kColumns];
  for (auto& row : sum) {
    for (auto& v : row) v = hn::Zero(d);
  }
  int64_t k = 0;
  for (; k + lanes <= depth; k += lanes) {
    for (int n = 0; n < kColumns; ++n) {
      const auto weight = LoadBf16(d, w + n * depth + k);
      for (int m = 0; m < kRows; ++m) {
        sum[m][n] = hn::MulAdd(hn::LoadU(d, x + m * depth + k), weight, sum[m][n]);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kColumns; ++n) {
      float total = hn::GetLane(hn::SumOfLanes(d, sum[m][n]));
      for (int64_t i = k; i < depth; ++i) total += x[m * depth + i] * ToFloat(w[n * depth + i]);
      sums[m * 4 + n] = total;
    }
  }
}

// Rows [row, row + rows) of the result, columns [column, column + columns). `x`: those rows
// widened.
void MultiplyBlock(
    const Product& p, const float* x, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  float sums[4 * 4];
  for (int64_t n = 0; n < columns; n += n + 4 <= columns ? 4 : 1) {
    const bf16* w = p.w + (column + n) * p.depth;
    const int64_t width = n + 4 <= columns ? 4 : 1;
    for (int64_t m = 0; m < rows; m += m + 4 <= rows ? 4 : 1) {
      const float* from = x + m * p.depth;
      const int64_t height = m + 4 <= rows ? 4 : 1;
      if (height == 4) {
        width == 4 ? DotBlock<4, 4>(from, w, p.depth, sums)
                   : DotBlock<4, 1>(from, w, p.depth, sums);
      } else {
        width == 4 ? DotBlock<1, 4>(from, w, p.depth, sums)
                   : DotBlock<1, 1>(from, w, p.depth, sums);
      }
      for (int64_t i = 0; i < height; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          const int64_t at = (row + m + i) * p.columns + column + n + j;
          if (p.out_float != nullptr) {
            p.out_float[at] = sums[i * 4 + j];
          } else {
            p.out_bf16[at] = ToBf16(sums[i * 4 + j]);
          }
        }
      }
    }
  }
}

}  // namespace asynctls::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {

HWY_EXPORT(MultiplyBlock);

void MultiplyFp32(const Product& p, ThreadTeam& team) {
  constexpr int64_t kRows = 64;  // widened at a time
  constexpr int64_t kColumns = 32;
  float* x = team.scratch().Get<float>(0, std::min(kRows, p.rows) * p.depth);
  const auto block = HWY_DYNAMIC_DISPATCH(MultiplyBlock);
  for (int64_t row = 0; row < p.rows; row += kRows) {
    const int64_t rows = std::min(kRows, p.rows - row);
    std::transform(p.x + row * p.depth, p.x + (row + rows) * p.depth, x, ToFloat);
    team.ParallelFor((p.columns + kColumns - 1) / kColumns, [&](int64_t i, Scratch&) {
      const int64_t column = i * kColumns;
      block(p, x, row, rows, column, std::min(kColumns, p.columns - column));
    });
  }
}

}  // namespace asynctls
#endif
