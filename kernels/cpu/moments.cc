// SPDX-License-Identifier: Apache-2.0
// Second moments on the CPU: tiles of rows are widened once and multiplied in fp32, the tiles' sums
// are added in double. One work item per four rows of the result.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/moments.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/exact-inl.h"
#include "kernels/cpu/state.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {

void WidenTile(const bf16* x, int64_t stride, int64_t count, int64_t d_count, float* tile) {
  for (int64_t i = 0; i < count; ++i) Widen(x + i * stride, d_count, tile + i * d_count);
}

// second[d .. d + 4) += their products over the tile.
void AddTile(const float* HWY_RESTRICT tile, int64_t count, int64_t d, View<double, 2> second) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const int64_t d_count = second.dim(1);
  HWY_ALIGN float sum[4][HWY_MAX_BYTES / 4];
  for (int64_t e = 0; e < d_count; e += lanes) {
    auto a0 = hn::Zero(df), a1 = a0, a2 = a0, a3 = a0;
    for (int64_t i = 0; i < count; ++i) {
      const float* row = tile + i * d_count;
      const auto x = hn::LoadU(df, row + e);
      a0 = hn::MulAdd(x, hn::Set(df, row[d]), a0);
      a1 = hn::MulAdd(x, hn::Set(df, row[d + 1]), a1);
      a2 = hn::MulAdd(x, hn::Set(df, row[d + 2]), a2);
      a3 = hn::MulAdd(x, hn::Set(df, row[d + 3]), a3);
    }
    hn::Store(a0, df, sum[0]);
    hn::Store(a1, df, sum[1]);
    hn::Store(a2, df, sum[2]);
    hn::Store(a3, df, sum[3]);
    for (int j = 0; j < 4; ++j) {
      double* out = second.data + (d + j) * d_count + e;
      for (int64_t k = 0; k < lanes; ++k) out[k] += sum[j][k];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace asynctls {
HWY_EXPORT(WidenTile);
HWY_EXPORT(AddTile);

void CpuOps::Moments(const MomentsArgs& a) {
  constexpr int64_t kTile = 128;  // rows summed in fp32
  const int64_t d_count = a.first.dim(0);
  assert(d_count % 16 == 0);
  ThreadTeam& team = state_->team;
  auto* tile = team.scratch().Get<float>(0, kTile * d_count);
  for (int64_t begin = 0; begin < a.count; begin += kTile) {
    const int64_t count = std::min(kTile, a.count - begin);
    HWY_DYNAMIC_DISPATCH(WidenTile)(a.x + begin * a.stride, a.stride, count, d_count, tile);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t d = 0; d < d_count; ++d) a.first[d] += tile[i * d_count + d];
    }
    team.ParallelFor(d_count / 4, 4, [&](int64_t i, Scratch&) {
      HWY_DYNAMIC_DISPATCH(AddTile)(tile, count, 4 * i, a.second);
    });
  }
}

}  // namespace asynctls
#endif  // HWY_ONCE
