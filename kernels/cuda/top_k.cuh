// SPDX-License-Identifier: Apache-2.0
// Exact selection of the best by one thread block: the rule of RankKey (kernels/ref/exact.h) over
// ordered keys, ties to the lower index, results in index order. The keys are counted in narrow
// bins; the one in which the cut lies is cut by the next eight bits until it holds few keys, and
// those are compared with each other.
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

  // `run`: keys of a thread. Requires: run <= kPer, n <= run * threads; `load(i)` gives key i.
  template <typename Load>
  __device__ RegisterKeys(int n, int run, Load load)
      : first(static_cast<int>(threadIdx.x) * run), count(min(run, n - first)) {
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

// Bins of 2^kShiftOf keys from kLowestOf on: all keys below are in the first, all above in the
// last. kFirst: the only key that the first one can hold.
template <uint32_t kLowestOf, int kShiftOf, int kCountOf, uint32_t kFirstOf>
struct KeyBins {
  static constexpr int kCount = kCountOf, kShift = kShiftOf;
  static constexpr uint32_t kFirst = kFirstOf, kBase = kLowestOf >> kShiftOf;
  static_assert(kBase << kShift == kLowestOf);
  __device__ static int Of(uint32_t key) {
    return min(static_cast<int>((max(key, kLowestOf) >> kShift) - kBase), kCount - 1);
  }
};

// `Bins`: a KeyBins whose last bin can hold forced keys alone.
template <int kThreads, typename Bins>
struct TopK {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kFew = 64;
  static constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
  static_assert(kFew <= kThreads && kDigits <= kThreads && Bins::kCount % (4 * kThreads) == 0);

  // What is kept: every key above `threshold`, and the first `equal` that are equal to it.
  struct Cut {
    uint32_t threshold;
    int equal;
  };

  // Where the cut lies: a bin or digit, how many of its keys are kept, how many it has.
  struct Place {
    int bin;
    uint32_t kept, count;
  };

  // Shared memory. One call of ByCount, ByMass or Emit each between two calls of Clear.
  struct Scratch {
    alignas(16) uint32_t few[kFew];  // keys in question
    unsigned long long mass[kDigits];
    unsigned long long warp_total[4][kWarps];
    uint32_t few_count;
    Place place;
    Cut cut;
  };

  // Clears the scratch memory and `bins` [Bins::kCount]. A barrier must lie between this and what
  // comes after.
  __device__ static void Clear(Scratch& s, uint32_t* bins) {
    for (int i = 4 * static_cast<int>(threadIdx.x); i < Bins::kCount; i += 4 * kThreads) {
      *reinterpret_cast<uint4*>(bins + i) = make_uint4(0, 0, 0, 0);
    }
    if (static_cast<int>(threadIdx.x) < kFew) s.few[threadIdx.x] = 0;
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
      sum += lane >= i ? y : 0;
    }
    if (lane == 31) warp_total[warp] = sum;
    __syncthreads();
    T before = 0, all = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      before += i < warp ? warp_total[i] : 0;
      all += warp_total[i];
    }
    *total = all;
    return before + sum - x;
  }

  // The place of the `keep`th best, thread i having `own` bins from the kPer * i th last one on,
  // downwards. For all threads, after a barrier.
  template <int kPer>
  __device__ static Place Find(Scratch& s, const uint32_t (&own)[kPer], int bins, uint32_t keep) {
    uint32_t sum = 0, total;
#pragma unroll
    for (int i = 0; i < kPer; ++i) sum += own[i];
    uint32_t at = Scan(s, 0, sum, &total);
    if (at < keep && at + sum >= keep) {
      int bin = 0;
      uint32_t kept = 0, count = 0;
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const bool here = at < keep && at + own[i] >= keep;
        bin = here ? i : bin;
        kept = here ? keep - at : kept;
        count = here ? own[i] : count;
        at += own[i];
      }
      s.place = {bins - 1 - kPer * static_cast<int>(threadIdx.x) - bin, kept, count};
    }
    __syncthreads();
    return s.place;
  }

  // Counts the keys in `bins`. A barrier must follow.
  template <typename Keys>
  __device__ static void Count(uint32_t* bins, const Keys& keys) {
    keys.Each([&](int, uint32_t key) { atomicAdd(&bins[Bins::Of(key)], 1u); });
  }

  // The cut that keeps the `keep` best of n keys, 0 < keep < n. `counted(i)`: how many keys are in
  // the bins i .. i + 3; `digits`: as many words as digits.
  template <typename Keys, typename Counted>
  __device__ static Cut ByCount(
      Scratch& s, const Keys& keys, uint32_t keep, Counted counted, uint32_t* digits) {
    constexpr int kPer = Bins::kCount / kThreads;
    const int last = Bins::kCount - kPer * static_cast<int>(threadIdx.x);
    uint32_t own[kPer];
#pragma unroll
    for (int i = 0; i < kPer; i += 4) {
      const uint4 x = counted(last - 4 - i);
      own[i] = x.w;
      own[i + 1] = x.z;
      own[i + 2] = x.y;
      own[i + 3] = x.x;
    }
    Place place = Find(s, own, Bins::kCount, keep);
    if (place.bin == Bins::kCount - 1) return {kForcedKey, static_cast<int>(place.kept)};
    if (place.bin == 0) return {Bins::kFirst, static_cast<int>(place.kept)};
    // The keys in question are those that are `prefix` above `shift`.
    uint32_t prefix = Bins::kBase + static_cast<uint32_t>(place.bin);
    int shift = Bins::kShift;
#pragma unroll 1
    while (place.count > kFew && shift > 0) {
      const int bits = min(shift, kDigitBits), next = shift - bits;
      const int digit = kDigits - 1 - static_cast<int>(threadIdx.x);  // of this thread
      if (digit >= 0) digits[digit] = 0;
      __syncthreads();
      keys.Each([&](int, uint32_t key) {
        if (key >> shift == prefix) atomicAdd(&digits[key >> next & ((1u << bits) - 1)], 1u);
      });
      __syncthreads();
      const uint32_t mine[1] = {digit >= 0 ? digits[digit] : 0};
      place = Find(s, mine, kDigits, place.kept);
      prefix = prefix << bits | static_cast<uint32_t>(place.bin);
      shift = next;
    }
    if (shift == 0) return {prefix, static_cast<int>(place.kept)};
    return AmongFew(s, keys, prefix, shift, place);
  }

  // The keys that are `prefix` above `shift` compared with each other.
  template <typename Keys>
  __device__ static Cut AmongFew(
      Scratch& s, const Keys& keys, uint32_t prefix, int shift, const Place& place) {
    uint32_t mine = 0;
    keys.Each([&](int, uint32_t key) { mine += key >> shift == prefix; });
    if (mine > 0) {
      uint32_t at = atomicAdd(&s.few_count, mine);
      keys.Each([&](int, uint32_t key) {
        if (key >> shift == prefix) s.few[at++] = key;
      });
    }
    __syncthreads();
    const int n = static_cast<int>(place.count);
    if (static_cast<int>(threadIdx.x) < n) {
      const uint32_t own = s.few[threadIdx.x];
      uint32_t above = 0, equal = 0;
      auto compare = [&](uint32_t key) {
        above += key > own;
        equal += key == own;
      };
#pragma unroll 2
      for (int i = 0; i < n; i += 4) {  // those that are not there are 0 and none of the best
        const uint4 four = *reinterpret_cast<const uint4*>(s.few + i);
        compare(four.x);
        compare(four.y);
        compare(four.z);
        compare(four.w);
      }
      if (above < place.kept && above + equal >= place.kept) {
        s.cut = {own, static_cast<int>(place.kept - above)};
      }
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
    __shared__ unsigned long long above;
    __shared__ uint32_t digit;
    uint32_t prefix = 0;
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
      if (static_cast<int>(threadIdx.x) < kDigits) s.mass[threadIdx.x] = 0;
      __syncthreads();
      keys.Each([&](int, uint32_t key) {
        if (key == kForcedKey || (shift < 24 && (key ^ prefix) >> (shift + 8) != 0)) return;
        atomicAdd(&s.mass[key >> shift & (kDigits - 1)],
                  static_cast<unsigned long long>(gpu::FixedScore(gpu::ScoreOfKey(key))));
      });
      __syncthreads();
      if (threadIdx.x == 0) {
        above = 0;
        digit = kDigits - 1;
        while (digit > 0 && above + s.mass[digit] < left) above += s.mass[digit--];
      }
      __syncthreads();
      prefix |= digit << shift;
      left -= above;
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
    const Counts before = Scan(s, 1, static_cast<Counts>(Counts{above} << kHalf | equal), &total);
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
