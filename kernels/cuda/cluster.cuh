// SPDX-License-Identifier: Apache-2.0
// Thread block clusters and the barriers in shared memory that count bytes (sm_90). On older GPUs a
// "cluster" is one block, and nothing here is called but what has its plain meaning there.
#pragma once

#include <cstdint>

#include "kernels/cuda/primitives.cuh"

namespace asynctls {

// A barrier over all threads of a cluster, and each other's shared memory, by the address that the
// own block has the same object at. In a "cluster" of one block these are the plain things, on any
// GPU. (The barrier waits for all memory of its threads, which takes half a microsecond: where few
// values go round, send them.)
template <int kRanks>
__device__ inline void ClusterSync() {
  if constexpr (kRanks == 1) {
    __syncthreads();
  } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  }
}
template <int kRanks>
__device__ inline uint32_t ClusterAddress(const void* own, int rank) {
  uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(own));
  if constexpr (kRanks > 1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
#endif
  }
  return address;
}
template <int kRanks>
__device__ inline uint32_t ClusterLoad(uint32_t address) {
  uint32_t x = 0;
  if constexpr (kRanks == 1) {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
#endif
  }
  return x;
}
template <int kRanks>
__device__ inline void ClusterStore(uint32_t address, uint32_t x) {
  if constexpr (kRanks == 1) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
  } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
#endif
  }
}

// Sixteen bytes at an address that is a multiple of 16.
template <int kRanks>
__device__ inline uint4 ClusterLoad4(uint32_t address) {
  uint4 x = make_uint4(0, 0, 0, 0);
  if constexpr (kRanks == 1) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address)
                 : "memory");
  } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address)
                 : "memory");
#endif
  }
  return x;
}
template <int kRanks>
__device__ inline void ClusterStore4(uint32_t address, uint4 x) {
  if constexpr (kRanks == 1) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(x.x),
                 "r"(x.y),
                 "r"(x.z),
                 "r"(x.w)
                 : "memory");
  } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(x.x),
                 "r"(x.y),
                 "r"(x.z),
                 "r"(x.w)
                 : "memory");
#endif
  }
}

// ---- barriers that count arrivals and bytes
using ByteBarrier = uint64_t;

// By one thread; a barrier of the block, or of the cluster, must follow.
__device__ inline void BarrierInit(ByteBarrier* barrier, uint32_t arrivals) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
#endif
}
__device__ inline void BarrierArrive(ByteBarrier* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
#endif
}
// One arrival, and so many bytes still to come.
__device__ inline void BarrierExpect(ByteBarrier* barrier, uint32_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
#endif
}
// Waits for the end of the phase of this parity.
__device__ inline void BarrierWait(ByteBarrier* barrier, uint32_t parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "WAIT_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra DONE_%=;\n"
      "bra WAIT_%=;\n"
      "DONE_%=:\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
#endif
}

// Makes the barriers that this block has initialised known to its cluster, by all its threads; does
// not wait for memory as ClusterSync does.
template <int kRanks>
__device__ inline void ShareBarriers() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (kRanks > 1) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
#endif
}

// ---- values for another block of the cluster. `to` and `barrier` are ClusterAddresses in it; the
// barrier counts the bytes, and who has waited for it sees them.
__device__ inline void Send(uint32_t to, uint32_t x, uint32_t barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to),
      "r"(x),
      "r"(barrier)
      : "memory");
#endif
}
__device__ inline void Send(uint32_t to, unsigned long long x, uint32_t barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::"r"(to),
      "l"(x),
      "r"(barrier)
      : "memory");
#endif
}
// To a multiple of 16.
__device__ inline void Send(uint32_t to, uint4 x, uint32_t barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "r"(x.x),
      "r"(x.y),
      "r"(x.z),
      "r"(x.w),
      "r"(barrier)
      : "memory");
#endif
}

}  // namespace asynctls
