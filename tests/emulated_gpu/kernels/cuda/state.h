// SPDX-License-Identifier: Apache-2.0
// Takes the place of kernels/cuda/state.h on the emulated GPU: an H200's shape, scratch memory for
// the operators that run on it, and launches that have ended when they return.
#pragma once

#include <cassert>
#include <vector>

#include "kernels/cuda/cuda_ops.h"
#include "tests/emulated_gpu/cuda_words.h"

namespace asynctls {

struct CudaOps::State {
  struct SplitScratch {
    View<float, 1> out, largest, weight;
    View<uint32_t, 1> arrived;
  };

  int MaxSplits(int64_t kv_heads) const {
    return static_cast<int>(std::clamp<int64_t>(2 * multiprocessors / kv_heads, 1, 64));
  }

  int major = 9, multiprocessors = 132;
  int shared_bytes = static_cast<int>(emulated::kMostShared);
  SplitScratch split;
  View<uint32_t, 1> block_keys, scored, token_keys;
  std::vector<float> floats[3];
  std::vector<uint32_t> words[4];
};

inline bool Aligned(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

template <typename... P, typename... A>
void LaunchClusters(const CudaOps::State&,
                    unsigned cluster,
                    void (*kernel)(P...),
                    dim3 grid,
                    unsigned threads,
                    size_t shared_bytes,
                    const A&... args) {
  emulated::Run(grid, threads, cluster, shared_bytes, [&] { kernel(static_cast<P>(args)...); });
}
template <typename... P, typename... A>
void Launch(const CudaOps::State& state,
            void (*kernel)(P...),
            dim3 grid,
            unsigned threads,
            size_t shared_bytes,
            const A&... args) {
  LaunchClusters(state, 1, kernel, grid, threads, shared_bytes, args...);
}

}  // namespace asynctls
