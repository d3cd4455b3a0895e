// SPDX-License-Identifier: Apache-2.0
// Integer products of a turned query with the key codes of one block, once per instruction set.
#if defined(ASYNCTLS_CODE_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASYNCTLS_CODE_DOT_INL_H_
#undef ASYNCTLS_CODE_DOT_INL_H_
#else
#define ASYNCTLS_CODE_DOT_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/cpu/code_dot.h"
#include "kernels/ops.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// product[p] = the sum over all directions of code8 * code for the 64 positions, in order. Without
// `second`, over part 1: the coarse directions then count with their low bits 0, and the rest not.
HWY_INLINE void Products(const uint32_t* HWY_RESTRICT first /*[2][64]*/,
                         const uint32_t* HWY_RESTRICT second /*[2][64] or null*/,
                         const int8_t* HWY_RESTRICT code8,
                         int32_t* HWY_RESTRICT product) {
  const hn::ScalableTag<uint32_t> du;
  const hn::RebindToSigned<decltype(du)> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(du));
  const auto nibble = hn::Set(du, 15u), crumb = hn::Set(du, 3u);
  for (int64_t p = 0; p < kBlockPositions; p += lanes) {
    auto sum = hn::Zero(di);
    const auto add = [&](auto code, int c) HWY_ATTR {
      sum = hn::Add(sum, hn::Mul(hn::BitCast(di, code), hn::Set(di, int32_t{code8[c]})));
    };
    const auto fine = hn::LoadU(du, first + p), high = hn::LoadU(du, first + kBlockPositions + p);
    const auto low = second ? hn::LoadU(du, second + p) : hn::Zero(du);
    const auto rest = second ? hn::LoadU(du, second + kBlockPositions + p) : hn::Zero(du);
    for (int j = 0; j < 4; ++j) {
      for (int k = 0; k < 2; ++k) {
        const int shift = 8 * j + 4 * k;
        add(hn::And(hn::ShiftRightSame(fine, shift), nibble), 4 * k + j);
        add(hn::And(hn::ShiftRightSame(rest, shift), nibble), kRestDirections + 4 * k + j);
      }
      for (int k = 0; k < 4; ++k) {
        const int shift = 8 * j + 2 * k;
        const auto top = hn::ShiftLeft<2>(hn::And(hn::ShiftRightSame(high, shift), crumb));
        add(hn::Or(top, hn::And(hn::ShiftRightSame(low, shift), crumb)),
            kFineDirections + 4 * k + j);
      }
    }
    hn::StoreU(sum, di, product + p);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#endif  // ASYNCTLS_CODE_DOT_INL_H_
