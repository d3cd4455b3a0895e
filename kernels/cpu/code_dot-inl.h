// SPDX-License-Identifier: Apache-2.0
// Integer products of a turned query with the key codes of one block, once per instruction set:
// 16-bit sums of sixteen directions, which cannot overflow (16 * 15 * 127 < 2^15).
#if defined(ASYNCTLS_CODE_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASYNCTLS_CODE_DOT_INL_H_
#undef ASYNCTLS_CODE_DOT_INL_H_
#else
#define ASYNCTLS_CODE_DOT_INL_H_
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "kernels/cpu/code_dot.h"
#include "kernels/ops.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// sum[p] += code8 . code over r directions, for the 64 positions, in order.
HWY_INLINE void AddProducts(const uint8_t* HWY_RESTRICT codes /*[r / 2][64]*/,
                            int64_t r,
                            const int8_t* HWY_RESTRICT code8,
                            int32_t* HWY_RESTRICT sum) {
  const hn::ScalableTag<int16_t> dh;
  const hn::Rebind<uint8_t, decltype(dh)> db;
  const auto lanes = static_cast<int64_t>(hn::Lanes(dh));
  for (int64_t p = 0; p < kBlockPositions; p += lanes) {
    for (int64_t begin = 0; begin < r; begin += 16) {
      auto acc = hn::Zero(dh);
      for (int64_t c = begin; c < std::min(r, begin + 16); c += 2) {
        const auto byte = hn::PromoteTo(dh, hn::LoadU(db, codes + c / 2 * kBlockPositions + p));
        const auto even = hn::And(byte, hn::Set(dh, int16_t{15})), odd = hn::ShiftRight<4>(byte);
        acc = hn::Add(acc, hn::Mul(even, hn::Set(dh, int16_t{code8[c]})));
        acc = hn::Add(acc, hn::Mul(odd, hn::Set(dh, int16_t{code8[c + 1]})));
      }
      HWY_ALIGN int16_t part[HWY_MAX_BYTES / 2];
      hn::Store(acc, dh, part);
      for (int64_t i = 0; i < lanes; ++i) sum[p + i] += part[i];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#endif  // ASYNCTLS_CODE_DOT_INL_H_
