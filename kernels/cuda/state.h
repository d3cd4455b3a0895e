// SPDX-License-Identifier: Apache-2.0
// What the ops of one CudaOps share, and how they launch. Private to kernels/cuda.
//
// How an op is written: a kernel over plain pointers in an anonymous namespace, CudaOps::X below it
// unpacks the views and launches. Every kernel begins with GridTrigger, which lets the next one in,
// and GridWait (primitives.cuh), in at least one thread of it: so a kernel ends after all before
// it, and several can be there at once, of which the later ones fetch what no kernel of a step
// writes.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/device/buffer.h"
#include "kernels/device/carver.h"

namespace asynctls {

struct CudaOps::State {
  // Where the parts of split attention meet, per (row, KV head) and split.
  struct SplitScratch {
    View<float, 1> out;         // [S, G, splits, R, D], weighted sums
    View<float, 1> largest;     // [S, G, splits, R], of the logits, times log2(e)
    View<float, 1> weight;      // [S, G, splits, R], sums of the weights
    View<uint32_t, 1> arrived;  // [S, G, ...], zero between ops
  };

  State() = default;
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  // Before a kernel's first launch: it may use more shared memory than the 48 KiB every GPU gives
  // unasked, and runs with as much of the cache as can be being shared memory: kernels that differ
  // in it cannot be on one multiprocessor at a time, and those of a step are to overlap.
  void Prepare(const void* kernel) const;

  // Most parts that one (row, KV head) is cut into: enough to fill the machine with one row.
  int MaxSplits(int64_t kv_heads) const;

  int device = 0;
  int major = 0, minor = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;  // most that a block can have
  cudaStream_t stream = nullptr;
  cudaStream_t notices = nullptr;  // where calls wait for marks, so that the ops need not
  cudaEvent_t marks[kMarks] = {};
  cublasLtHandle_t lt = nullptr;
  std::unordered_map<uint64_t, cudaGraphExec_t> graphs;
  // cuBLASLt's kernel for a product of this [N, K] and output size, whatever the number of rows.
  std::map<std::tuple<int64_t, int64_t, int>, cublasLtMatmulAlgo_t> algorithms;

  mutable std::unordered_set<const void*> prepared;  // kernels that Prepare has seen

  Buffer arena;
  View<uint8_t, 1> gemm_workspace;
  SplitScratch split;
  View<uint32_t, 1> block_keys;  // [S, G, M], scores of SelectBlocks as ordered integers
  View<uint32_t, 1> scored;      // [S, G], blocks of SelectBlocks that are done; zero between ops
  View<uint32_t, 1> token_keys;  // [S, G, M P], where they do not fit shared memory
  View<float, 1> sampled;        // adjusted logits of some rows, where they do not fit it
};

// To 16 bytes: what kernels read and write at once where they can.
inline bool Aligned(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

// Launches `kernel` on the stream in clusters of so many blocks (of grid.x); on sm_90 and later it
// may start before its predecessor ends.
template <typename... P, typename... A>
void LaunchClusters(const CudaOps::State& state,
                    unsigned cluster,
                    void (*kernel)(P...),
                    dim3 grid,
                    unsigned threads,
                    size_t shared_bytes,
                    const A&... args) {
  state.Prepare(reinterpret_cast<const void*>(kernel));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = state.stream;
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  config.attrs = attributes;
  config.numAttrs = state.major < 9 ? 0 : cluster > 1 ? 2 : 1;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...));
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
