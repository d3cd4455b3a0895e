// SPDX-License-Identifier: Apache-2.0
// Takes the place of kernels/cuda/cluster.cuh on the emulated GPU (PTX ISA 8.8, chapters 9.7.9 and
// 9.7.13). What is sent is there at once.
#pragma once

#include "kernels/cuda/primitives.cuh"

namespace asynctls {

template <int kRanks>
void ClusterSync() {
  emulated::Block& block = *emulated::current->block;
  emulated::Wait(kRanks == 1 ? block.barrier : *block.cluster_barrier);
}
template <int kRanks>
uint32_t ClusterAddress(const void* own, int rank) {
  return emulated::AddressInRank(emulated::AddressOf(own), rank);
}
template <int kRanks>
uint32_t ClusterLoad(uint32_t address) {
  return LoadShared<uint32_t>(address);
}
template <int kRanks>
uint4 ClusterLoad4(uint32_t address) {
  return LoadShared<uint4>(address);
}
template <int kRanks>
void ClusterStore4(uint32_t address, uint4 x) {
  std::memcpy(emulated::AtAddress(address), &x, sizeof(x));
}

struct ByteBarrier {
  uint64_t phase;  // how many have ended
  int64_t arrivals, missing_arrivals, missing_bytes;

  void EndIfComplete() {
    if (missing_arrivals != 0 || missing_bytes != 0) return;
    missing_arrivals = arrivals;
    ++phase;
  }
};

inline void BarrierInit(ByteBarrier* barrier, uint32_t arrivals) {
  *barrier = {.phase = 0, .arrivals = arrivals, .missing_arrivals = arrivals, .missing_bytes = 0};
}
template <int kRanks>
void ShareBarriers() {
  ClusterSync<kRanks>();
}
inline void BarrierExpect(ByteBarrier* barrier, uint32_t bytes) {
  barrier->missing_bytes += bytes;
  --barrier->missing_arrivals;
  barrier->EndIfComplete();
}
inline void BarrierWait(const ByteBarrier* barrier, uint32_t parity) {
  while (barrier->phase % 2 == parity) emulated::WaitForChange(barrier->phase, barrier->phase);
}
template <typename T>
void Send(uint32_t to, const T& x, uint32_t barrier) {
  std::memcpy(emulated::AtAddress(to), &x, sizeof(x));
  auto* counter = reinterpret_cast<ByteBarrier*>(emulated::AtAddress(barrier));
  counter->missing_bytes -= int64_t{sizeof(x)};
  counter->EndIfComplete();
}

}  // namespace asynctls
