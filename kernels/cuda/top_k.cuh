// SPDX-License-Identifier: Apache-2.0
// Exact selection of the best by one thread block: the rule of RankKey (kernels/ref/exact.h) over
// ordered keys, ties to the lower index, results in index order. Radix selection: the keys' common
// leading bits are skipped, then eight bits are settled per pass, one barrier each, until so few
// keys are in question that each can be compared with all of them.
//
// Keys are given as an object that walks through a thread's share of them, a run of neighbouring
// indices: RegisterKeys, or MemoryKeys where there are more than registers.
#pragma once

#include <cstdint>

#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/primitives.cuh"

namespace asynctls {

template <int kPer>
struct RegisterKeys {
  using Counts = uint32_t;  // two numbers of keys
  uint32_t key[kPer];
  int first, count;  // of this thread

  // Requires: n <= kPer * threads; `load(i)` gives key i.
  template <typename Load>
  __device__ RegisterKeys(int n, Load load)
      : first(static_cast<int>(threadIdx.x) * kPer), count(min(kPer, n - first)) {
#pragma unroll
    for (int i = 0; i < kPer; ++i) key[i] = i < count ? load(first + i) : 0;
  }
  template <typename Body>
  __device__ void Each(Body body) const {
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      if (i < count) body(first + i, key[i]);
    }
  }
};

struct MemoryKeys {
  using Counts = unsigned long long;
  const uint32_t* key;
  int first, end;

  __device__ MemoryKeys(const uint32_t* keys, int n) : key(keys) {
    const int run = (n + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
    first = min(n, static_cast<int>(threadIdx.x) * run);
    end = min(n, first + run);
  }
  template <typename Body>
  __device__ void Each(Body body) const {
#pragma unroll 1
    for (int i = first; i < end; ++i) body(i, key[i]);
  }
};

template <int kThreads>
struct TopK {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kPasses = 4;
  static constexpr int kFew = 64;

  // What is kept: every key above `threshold`, and the first `equal` that are equal to it.
  struct Cut {
    uint32_t threshold;
    int equal;
  };

  // Shared memory. One call of ByCount, ByMass or Emit each between two calls of Clear.
  struct Scratch {
    alignas(16) uint32_t count[kPasses][256];
    alignas(16) uint32_t few[kFew];  // keys in question
    unsigned long long mass[256];
    unsigned long long warp_total[4][kWarps];
    uint32_t low[kWarps], high[kWarps], forced[kWarps];
    uint32_t few_count;
    Cut cut;
    uint32_t digit;
    unsigned long long above;
  };

  // A barrier must lie between this and what comes after.
  __device__ static void Clear(Scratch& s) {
    for (int i = static_cast<int>(threadIdx.x); i < kPasses * 256; i += kThreads) {
      (&s.count[0][0])[i] = 0;
    }
    for (int i = static_cast<int>(threadIdx.x); i < kFew; i += kThreads) s.few[i] = 0;
    if (threadIdx.x == 0) s.few_count = 0;
  }

  // Exclusive sum over the threads of the block, and the total; `use`: which of the four.
  template <typename T>
  __device__ static T Scan(Scratch& s, int use, T x, T* total) {
    const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
    auto* warp_total = reinterpret_cast<T*>(s.warp_total[use]);
    T sum = x;
#pragma unroll
    for (int i = 1; i < 32; i <<= 1) {
      const T y = __shfl_up_sync(kAllLanes, sum, i);
      if (lane >= i) sum += y;
    }
    if (lane == 31) warp_total[warp] = sum;
    __syncthreads();
    T before = 0, all = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      if (i == warp) before = all;
      all += warp_total[i];
    }
    *total = all;
    return before + sum - x;
  }

  // The cut that keeps the `keep` best of n keys, 0 < keep < n.
  template <typename Keys>
  __device__ static Cut ByCount(Scratch& s, const Keys& keys, int keep) {
    const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
    uint32_t low = ~0u, high = 0, forced = 0;
    keys.Each([&](int, uint32_t key) {
      const bool is_forced = key == kForcedKey;
      forced += is_forced;
      low = min(low, is_forced ? ~0u : key);
      high = max(high, is_forced ? 0u : key);
    });
    low = __reduce_min_sync(kAllLanes, low);
    high = __reduce_max_sync(kAllLanes, high);
    forced = __reduce_add_sync(kAllLanes, forced);
    if (lane == 0) {
      s.low[warp] = low;
      s.high[warp] = high;
      s.forced[warp] = forced;
    }
    __syncthreads();
    low = __reduce_min_sync(kAllLanes, lane < kWarps ? s.low[lane] : ~0u);
    high = __reduce_max_sync(kAllLanes, lane < kWarps ? s.high[lane] : 0u);
    forced = __reduce_add_sync(kAllLanes, lane < kWarps ? s.forced[lane] : 0u);
    if (static_cast<int>(forced) >= keep) return {kForcedKey, keep};
    uint32_t left = static_cast<uint32_t>(keep) - forced;
    // Bits above `shift` are settled: all keys in question share `prefix` there.
    int shift = 32 - __clz(static_cast<int>(low ^ high));
    uint32_t prefix = shift == 32 ? 0 : high >> shift << shift;
#pragma unroll 1
    for (int pass = 0; shift > 0; ++pass) {
      const int bits = min(shift, 8), next = shift - bits;
      uint32_t* count = s.count[pass];
      keys.Each([&](int, uint32_t key) {
        const bool asked = key != kForcedKey && (shift == 32 || (key ^ prefix) >> shift == 0);
        if (asked) atomicAdd(&count[key >> next & ((1u << bits) - 1)], 1u);
      });
      __syncthreads();
      // Every warp looks for the digit by itself. Lane i has digits 8 i' .. 8 i' + 7, i' = 31 - i:
      // the sum runs from the top.
      const int base = (31 - lane) * 8;
      const uint4 a = *reinterpret_cast<const uint4*>(count + base);
      const uint4 b = *reinterpret_cast<const uint4*>(count + base + 4);
      const uint32_t own[8] = {b.w, b.z, b.y, b.x, a.w, a.z, a.y, a.x};
      uint32_t sum = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += own[i];
      uint32_t above = sum;
#pragma unroll
      for (int i = 1; i < 32; i <<= 1) {
        const uint32_t y = __shfl_up_sync(kAllLanes, above, i);
        if (lane >= i) above += y;
      }
      above -= sum;
      const bool here = above < left && above + sum >= left;
      uint32_t digit = 0, at = above, found = 0, in_question = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (at < left && at + own[i] >= left) {
          digit = static_cast<uint32_t>(base + 7 - i);
          found = at;
          in_question = own[i];
        }
        at += own[i];
      }
      const int owner = __ffs(static_cast<int>(__ballot_sync(kAllLanes, here))) - 1;
      digit = __shfl_sync(kAllLanes, digit, owner);
      left -= __shfl_sync(kAllLanes, found, owner);
      in_question = __shfl_sync(kAllLanes, in_question, owner);
      prefix |= digit << next;
      shift = next;
      if (shift > 0 && in_question <= kFew) {
        return AmongFew(s, keys, prefix, shift, static_cast<int>(in_question), left);
      }
    }
    return {prefix, static_cast<int>(left)};
  }

  // The same where `n` keys, at most kFew, are in question, those that share `prefix` above
  // `shift`: each is compared with all.
  template <typename Keys>
  __device__ static Cut AmongFew(
      Scratch& s, const Keys& keys, uint32_t prefix, int shift, int n, uint32_t keep) {
    keys.Each([&](int, uint32_t key) {
      if (key == kForcedKey || (key ^ prefix) >> shift != 0) return;
      s.few[atomicAdd(&s.few_count, 1u)] = key;
    });
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < n) {
      const uint32_t own = s.few[threadIdx.x];
      uint32_t above = 0, equal = 0;
      auto compare = [&](uint32_t key) {
        above += key > own;
        equal += key == own;
      };
#pragma unroll 4
      for (int i = 0; i < n; i += 4) {  // those that are not there are 0 and none of the best
        const uint4 four = *reinterpret_cast<const uint4*>(s.few + i);
        compare(four.x);
        compare(four.y);
        compare(four.z);
        compare(four.w);
      }
      if (above < keep && above + equal >= keep) s.cut = {own, static_cast<int>(keep - above)};
    }
    __syncthreads();
    return s.cut;
  }

  // Tightens `cut` (of keys that are scores, or forced) to the smallest set, best first, that holds
  // the forced ones and whose sum of FixedScore reaches MassNeeded(top_p, total). `total` and
  // `forced_total`: sums of FixedScore over all n keys, and over the forced ones.
  template <typename Keys>
  __device__ static Cut ByMass(Scratch& s,
                               const Keys& keys,
                               int n,
                               Cut cut,
                               float top_p,
                               unsigned long long total,
                               unsigned long long forced_total) {
    if (cut.threshold == kForcedKey) return cut;  // only forced ones are kept
    const auto needed =
        static_cast<unsigned long long>(static_cast<double>(top_p) * static_cast<double>(total));
    if (forced_total >= needed) return {kForcedKey, n};
    unsigned long long left = needed - forced_total;
    uint32_t prefix = 0;
#pragma unroll 1
    for (int shift = 32; shift > 0; shift -= 8) {
      for (int i = static_cast<int>(threadIdx.x); i < 256; i += kThreads) s.mass[i] = 0;
      __syncthreads();
      keys.Each([&](int, uint32_t key) {
        if (key == kForcedKey || (shift < 32 && (key ^ prefix) >> shift != 0)) return;
        atomicAdd(&s.mass[key >> (shift - 8) & 255],
                  static_cast<unsigned long long>(gpu::FixedScore(gpu::ScoreOfKey(key))));
      });
      __syncthreads();
      if (threadIdx.x == 0) {
        unsigned long long above = 0;
        int digit = 255;
        while (digit > 0 && above + s.mass[digit] < left) above += s.mass[digit--];
        s.digit = static_cast<uint32_t>(digit);
        s.above = above;
      }
      __syncthreads();
      prefix |= s.digit << (shift - 8);
      left -= s.above;
      __syncthreads();
    }
    if (prefix < cut.threshold) return cut;
    const unsigned long long each = gpu::FixedScore(gpu::ScoreOfKey(prefix));
    const auto equal = each == 0 ? static_cast<unsigned long long>(n) : (left + each - 1) / each;
    const auto most = static_cast<unsigned long long>(prefix > cut.threshold ? n : cut.equal);
    return {prefix, static_cast<int>(min(equal, most))};
  }

  // Calls keep(i, place) for every kept index, `place` being its number among them in index order;
  // returns how many there are.
  template <typename Keys, typename Keep>
  __device__ static int Emit(Scratch& s, const Keys& keys, Cut cut, Keep keep) {
    uint32_t above = 0, equal = 0;
    keys.Each([&](int, uint32_t key) {
      above += key > cut.threshold;
      equal += key == cut.threshold;
    });
    using Counts = typename Keys::Counts;
    constexpr int kHalf = 4 * sizeof(Counts);
    constexpr Counts kLow = (Counts{1} << kHalf) - 1;
    Counts total;
    const Counts before = Scan(s, 0, static_cast<Counts>(Counts{above} << kHalf | equal), &total);
    const auto limit = static_cast<uint32_t>(cut.equal);
    uint32_t above_before = static_cast<uint32_t>(before >> kHalf);
    uint32_t equal_before = static_cast<uint32_t>(before & kLow);
    keys.Each([&](int i, uint32_t key) {
      const bool is_above = key > cut.threshold, is_equal = key == cut.threshold;
      if (is_above || (is_equal && equal_before < limit)) {
        keep(i, static_cast<int>(above_before + min(equal_before, limit)));
      }
      above_before += is_above;
      equal_before += is_equal;
    });
    return static_cast<int>(static_cast<uint32_t>(total >> kHalf) +
                            min(static_cast<uint32_t>(total & kLow), limit));
  }
};

}  // namespace asynctls
