// SPDX-License-Identifier: Apache-2.0
// The exact k best of a list of unsigned keys, once per instruction set: a search for the k-th
// largest key by counting, then one pass that writes the indices in order.
#if defined(ASYNCTLS_TOP_K_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASYNCTLS_TOP_K_INL_H_
#undef ASYNCTLS_TOP_K_INL_H_
#else
#define ASYNCTLS_TOP_K_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <functional>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace asynctls {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Keys come padded with zeros to a multiple of this.
inline constexpr int64_t kTopKPad = 64;

// How many of keys [0, padded) are >= at. Requires: at > 0.
HWY_INLINE int64_t CountFrom(const uint32_t* HWY_RESTRICT keys, int64_t padded, uint32_t at) {
  const hn::ScalableTag<uint32_t> du;
  const auto lanes = static_cast<int64_t>(hn::Lanes(du));
  const auto below = hn::Set(du, at - 1);
  const auto one = hn::Set(du, 1u);
  auto a = hn::Zero(du), b = a;
  for (int64_t i = 0; i < padded; i += 2 * lanes) {
    a = hn::Add(a, hn::IfThenElseZero(hn::Gt(hn::LoadU(du, keys + i), below), one));
    b = hn::Add(b, hn::IfThenElseZero(hn::Gt(hn::LoadU(du, keys + i + lanes), below), one));
  }
  return static_cast<int64_t>(hn::GetLane(hn::SumOfLanes(du, hn::Add(a, b))));
}

// The k-th largest of keys [0, count), 1 <= k <= count, and in *above how many are larger.
// `spare` is scratch of `padded` + one vector.
HWY_INLINE uint32_t KthLargest(const uint32_t* HWY_RESTRICT keys,
                               int64_t count,
                               int64_t padded,
                               int64_t k,
                               uint32_t* HWY_RESTRICT spare,
                               int64_t* above) {
  const hn::ScalableTag<uint32_t> du;
  const auto lanes = static_cast<int64_t>(hn::Lanes(du));
  // count(key >= low) >= k > count(key >= high), first with the largest key that can be.
  uint64_t low = 0, high = uint64_t{1} << 32;
  int64_t from_low = count, from_high = 0;
  while (from_low - from_high > 128 && high - low > 1) {
    const uint64_t middle = low + (high - low) / 2;
    const int64_t n = CountFrom(keys, padded, static_cast<uint32_t>(middle));
    if (n >= k) {
      low = middle;
      from_low = n;
    } else {
      high = middle;
      from_high = n;
    }
  }
  if (high - low == 1) {
    *above = from_high;
    return static_cast<uint32_t>(low);
  }
  int64_t inside = 0;
  const auto lowest = hn::Set(du, static_cast<uint32_t>(low));
  const auto highest = hn::Set(du, static_cast<uint32_t>(high - 1));
  for (int64_t i = 0; i < count; i += lanes) {
    const auto v = hn::LoadU(du, keys + i);
    const auto in = hn::AndNot(hn::Gt(v, highest), hn::Not(hn::Lt(v, lowest)));
    inside += static_cast<int64_t>(hn::CompressStore(v, in, du, spare + inside));
  }
  inside = std::min(inside, from_low - from_high);  // padding counts only where low is 0: the end
  const int64_t nth = k - from_high - 1;
  std::nth_element(spare, spare + nth, spare + inside, std::greater<>());
  const uint32_t threshold = spare[nth];
  *above = from_high + std::count_if(spare, spare + nth, [=](uint32_t x) { return x > threshold; });
  return threshold;
}

// Writes the indices of the k largest of keys [0, count), increasing, ties to the lower index, and
// returns how many (k clamped to [0, count]). keys [count, padded) are zero, padded a multiple of
// kTopKPad; `spare` is scratch of padded + kTopKPad, `out` has room for k + kTopKPad.
HWY_INLINE int64_t TopK(const uint32_t* HWY_RESTRICT keys,
                        int64_t count,
                        int64_t padded,
                        int64_t k,
                        uint32_t* HWY_RESTRICT spare,
                        int32_t* HWY_RESTRICT out) {
  const hn::ScalableTag<int32_t> di;
  const hn::RebindToUnsigned<decltype(di)> du;
  const auto lanes = static_cast<int64_t>(hn::Lanes(di));
  k = std::clamp<int64_t>(k, 0, count);
  if (k == 0) return 0;
  if (k == count) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int32_t>(i);
    return count;
  }
  int64_t above = 0;
  const uint32_t threshold = KthLargest(keys, count, padded, k, spare, &above);
  int64_t ties = k - above, n = 0;
  const auto t = hn::Set(du, threshold);
  for (int64_t i = 0; i < padded && n < k; i += lanes) {
    const auto v = hn::LoadU(du, keys + i);
    const auto equal = hn::Eq(v, t);
    auto take = hn::Gt(v, t);
    const auto here = static_cast<int64_t>(hn::CountTrue(du, equal));
    if (here > 0 && ties > 0) {
      if (here <= ties) {
        take = hn::Or(take, equal);
        ties -= here;
      } else {
        for (int64_t j = i; j < i + lanes; ++j) {
          if (keys[j] < threshold || (keys[j] == threshold && ties-- <= 0)) continue;
          out[n++] = static_cast<int32_t>(j);
        }
        ties = 0;
        continue;
      }
    }
    const auto index = hn::Iota(di, static_cast<int32_t>(i));
    n += static_cast<int64_t>(hn::CompressStore(index, hn::RebindMask(di, take), di, out + n));
  }
  return n;
}

}  // namespace HWY_NAMESPACE
}  // namespace asynctls
HWY_AFTER_NAMESPACE();

#endif  // ASYNCTLS_TOP_K_INL_H_
