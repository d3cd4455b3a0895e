// SPDX-License-Identifier: Apache-2.0
// Exact selection of the best by one thread block: the rule of RankKey (kernels/ref/exact.h) over
// ordered keys, ties to the lower index, results in index order. Radix selection: the keys' common
// leading bits are skipped, then eight bits are settled per pass.
#pragma once

#include <cstdint>

#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/primitives.cuh"

namespace asynctls {

template <int kThreads>
struct TopK {
  static constexpr int kWarps = kThreads / 32;

  // Shared memory.
  struct Scratch {
    union {
      uint32_t count[256];
      unsigned long long mass[256];
    };
    unsigned long long warp_total[kWarps];
    uint32_t low[kWarps], high[kWarps], forced[kWarps];
    uint32_t digit;
    unsigned long long above;
  };

  // What is kept: every key above `threshold`, and the first `equal` that are equal to it.
  struct Cut {
    uint32_t threshold;
    int equal;
  };

  // Exclusive sum over the threads of the block, and the total. Ends with a barrier after reads.
  __device__ static unsigned long long Scan(Scratch& s,
                                            unsigned long long x,
                                            unsigned long long* total) {
    const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
    unsigned long long sum = x;
#pragma unroll
    for (int i = 1; i < 32; i <<= 1) {
      const unsigned long long y = __shfl_up_sync(kAllLanes, sum, i);
      if (lane >= i) sum += y;
    }
    if (lane == 31) s.warp_total[warp] = sum;
    __syncthreads();
    unsigned long long before = 0, all = 0;
#pragma unroll 4
    for (int i = 0; i < kWarps; ++i) {
      if (i == warp) before = all;
      all += s.warp_total[i];
    }
    __syncthreads();
    *total = all;
    return before + sum - x;
  }

  // The cut that keeps the `keep` best of n keys, 0 < keep < n. `keys` may be in any memory.
  __device__ static Cut ByCount(Scratch& s, const uint32_t* keys, int n, int keep) {
    const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
    uint32_t low = ~0u, high = 0, forced = 0;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
      const uint32_t key = keys[i];
      if (key == kForcedKey) {
        ++forced;
      } else {
        low = min(low, key);
        high = max(high, key);
      }
    }
    low = __reduce_min_sync(kAllLanes, low);
    high = __reduce_max_sync(kAllLanes, high);
    forced = __reduce_add_sync(kAllLanes, forced);
    if (lane == 0) {
      s.low[warp] = low;
      s.high[warp] = high;
      s.forced[warp] = forced;
    }
    __syncthreads();
    forced = 0;
    for (int i = 0; i < kWarps; ++i) {
      low = min(low, s.low[i]);
      high = max(high, s.high[i]);
      forced += s.forced[i];
    }
    if (static_cast<int>(forced) >= keep) return {kForcedKey, keep};
    int left = keep - static_cast<int>(forced);
    // Bits above `shift` are settled: all keys in question share `prefix` there.
    int shift = 32 - __clz(static_cast<int>(low ^ high));
    uint32_t prefix = shift == 32 ? 0 : high >> shift << shift;
    while (shift > 0) {
      const int bits = min(shift, 8), next = shift - bits;
      for (int i = static_cast<int>(threadIdx.x); i < 256; i += kThreads) s.count[i] = 0;
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
        const uint32_t key = keys[i];
        if (key == kForcedKey || (shift < 32 && (key ^ prefix) >> shift != 0)) continue;
        atomicAdd(&s.count[key >> next & ((1u << bits) - 1)], 1u);
      }
      __syncthreads();
      if (warp == 0) {
        // Lane i owns digits 8 i' .. 8 i' + 7 with i' = 31 - i: the scan runs from the top.
        const int base = (31 - lane) * 8;
        uint32_t own[8], sum = 0;
#pragma unroll
        for (int i = 7; i >= 0; --i) sum += own[i] = s.count[base + i];
        uint32_t above = sum;
#pragma unroll
        for (int i = 1; i < 32; i <<= 1) {
          const uint32_t y = __shfl_up_sync(kAllLanes, above, i);
          if (lane >= i) above += y;
        }
        above -= sum;
        if (above < static_cast<uint32_t>(left) && above + sum >= static_cast<uint32_t>(left)) {
          uint32_t at = above;
#pragma unroll
          for (int i = 7; i >= 0; --i) {
            if (at < static_cast<uint32_t>(left) && at + own[i] >= static_cast<uint32_t>(left)) {
              s.digit = static_cast<uint32_t>(base + i);
              s.above = at;
            }
            at += own[i];
          }
        }
      }
      __syncthreads();
      prefix |= s.digit << next;
      left -= static_cast<int>(s.above);
      shift = next;
    }
    return {prefix, left};
  }

  // Tightens `cut` (of keys that are scores, or forced) to the smallest set, best first, that holds
  // the forced ones and whose sum of FixedScore reaches MassNeeded(top_p, total). `total` and
  // `forced_total`: sums of FixedScore over all keys, and over the forced ones.
  __device__ static Cut ByMass(Scratch& s,
                               const uint32_t* keys,
                               int n,
                               Cut cut,
                               float top_p,
                               unsigned long long total,
                               unsigned long long forced_total) {
    if (cut.threshold == kForcedKey) return cut;  // only forced ones are kept
    const auto needed = static_cast<unsigned long long>(static_cast<double>(top_p) *
                                                        static_cast<double>(total));
    if (forced_total >= needed) return {kForcedKey, n};
    unsigned long long left = needed - forced_total;
    uint32_t prefix = 0;
    for (int shift = 32; shift > 0; shift -= 8) {
      for (int i = static_cast<int>(threadIdx.x); i < 256; i += kThreads) s.mass[i] = 0;
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
        const uint32_t key = keys[i];
        if (key == kForcedKey || (shift < 32 && (key ^ prefix) >> shift != 0)) continue;
        atomicAdd(&s.mass[key >> (shift - 8) & 255],
                  static_cast<unsigned long long>(gpu::FixedScore(gpu::ScoreOfKey(key))));
      }
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
  // returns how many there are. Each thread goes through a run of neighbouring indices.
  template <typename Keep>
  __device__ static int Emit(Scratch& s, const uint32_t* keys, int n, Cut cut, Keep keep) {
    const int run = (n + kThreads - 1) / kThreads;
    const int begin = min(n, static_cast<int>(threadIdx.x) * run), end = min(n, begin + run);
    uint32_t above = 0, equal = 0;
    for (int i = begin; i < end; ++i) {
      above += keys[i] > cut.threshold;
      equal += keys[i] == cut.threshold;
    }
    unsigned long long total;
    const unsigned long long before =
        Scan(s, static_cast<unsigned long long>(above) << 32 | equal, &total);
    const auto limit = static_cast<uint32_t>(cut.equal);
    uint32_t above_before = static_cast<uint32_t>(before >> 32);
    uint32_t equal_before = static_cast<uint32_t>(before);
    for (int i = begin; i < end; ++i) {
      const uint32_t key = keys[i];
      const bool is_above = key > cut.threshold, is_equal = key == cut.threshold;
      if (is_above || (is_equal && equal_before < limit)) {
        keep(i, static_cast<int>(above_before + min(equal_before, limit)));
      }
      above_before += is_above;
      equal_before += is_equal;
    }
    return static_cast<int>(static_cast<uint32_t>(total >> 32) +
                            min(static_cast<uint32_t>(total), limit));
  }
};

}  // namespace asynctls
