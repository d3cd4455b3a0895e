// SPDX-License-Identifier: Apache-2.0
// The threads of one rank and the scratch memory of each.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace asynctls {

// Memory of one thread, kept from op to op. A few numbered places so that an op can hold several
// arrays at once; contents do not survive from one op to the next.
class Scratch {
 public:
  static constexpr int kPlaces = 8;

  // `count` values of T, uninitialised, 64-byte aligned, valid until the next Get of this place.
  // Grows by at least half, so a growing shape reallocates a few times and then never again.
  template <typename T>
  T* Get(int place, int64_t count) {
    assert(place >= 0 && place < kPlaces);
    Place& p = places_[place];
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (bytes > p.bytes) {
      const size_t grown = std::max(bytes, p.bytes + p.bytes / 2);
      p.bytes = (grown + kAlign - 1) / kAlign * kAlign;
      p.data.reset(std::aligned_alloc(kAlign, p.bytes));
      if (p.data == nullptr) std::abort();  // out of memory, as operator new would
    }
    return static_cast<T*>(p.data.get());
  }

 private:
  static constexpr size_t kAlign = 64;
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  struct Place {
    std::unique_ptr<void, Free> data;
    size_t bytes = 0;
  };
  Place places_[kPlaces];
};

// The threads of one rank. Used from that rank's thread only, which is one of them.
class ThreadTeam {
 public:
  explicit ThreadTeam(int count) : scratch_(static_cast<size_t>(count)) { assert(count >= 1); }

  int count() const { return static_cast<int>(scratch_.size()); }

  // For what the calling thread does alone. Inside ParallelFor use the one handed to `fn`.
  Scratch& scratch() { return scratch_[0]; }

  // fn(i, scratch) for every i in [0, n), `grain` consecutive ones at a time, on whichever thread
  // is free: a result must not depend on who computes it. Returns when all are done. `fn` must not
  // call ParallelFor. With one thread or one piece of work it is a plain loop on the calling
  // thread.
  template <typename F>
  void ParallelFor(int64_t n, int64_t grain, const F& fn) {
    assert(grain >= 1);
    const int64_t pieces = (n + grain - 1) / grain;
    const int threads = static_cast<int>(std::min<int64_t>(count(), pieces));
    if (threads <= 1) {
      for (int64_t i = 0; i < n; ++i) fn(i, scratch_[0]);
      return;
    }
#pragma omp parallel num_threads(threads)
    {
      Scratch& mine = scratch_[static_cast<size_t>(omp_get_thread_num())];
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t end = std::min(n, (piece + 1) * grain);
        for (int64_t i = piece * grain; i < end; ++i) fn(i, mine);
      }
    }
  }
  template <typename F>
  void ParallelFor(int64_t n, const F& fn) {
    ParallelFor(n, 1, fn);
  }

 private:
  std::vector<Scratch> scratch_;
};

// How many rows of `width` values make a piece of work that is worth another thread.
inline int64_t RowGrain(int64_t width) { return std::max<int64_t>(1, 16384 / width); }

}  // namespace asynctls
