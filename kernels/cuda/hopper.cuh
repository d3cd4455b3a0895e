// SPDX-License-Identifier: Apache-2.0
// Hopper's matrix instructions over a group of four warps, and its tensor copies (sm_90a).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/primitives.cuh"

namespace asynctls {

// A box of a tensor to shared memory; `barrier` counts its bytes. One thread.
__device__ inline void CopyTensor(
    void* to, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%2, %3}], [%4];" ::"r"(SharedAddress(to)),
      "l"(map),
      "r"(column),
      "r"(row),
      "r"(SharedAddress(barrier))
      : "memory");
}

// Makes this thread's writes to shared memory visible to matrix instructions and tensor copies.
__device__ inline void FenceAsync() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- matrix products
// The 64 sums of a lane as operands of an instruction: what asm statements have no loop for.
#define ASYNCTLS_SUMS8(i)                                                                     \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), \
      "+f"(c[i + 6]), "+f"(c[i + 7])
#define ASYNCTLS_SUMS                                                           \
  ASYNCTLS_SUMS8(0), ASYNCTLS_SUMS8(8), ASYNCTLS_SUMS8(16), ASYNCTLS_SUMS8(24), \
      ASYNCTLS_SUMS8(32), ASYNCTLS_SUMS8(40), ASYNCTLS_SUMS8(48), ASYNCTLS_SUMS8(56)
// A matrix in shared memory as 128-byte rows whose 16-byte pieces are swizzled by the row's number
// (what CopyTensor with SWIZZLE_128B writes). `next`: bytes from one 64-value column group to the
// next, where the rows are along the summed dimension (else ignored).
__device__ inline uint64_t MatrixDescriptor(const void* shared, uint32_t next) {
  uint64_t descriptor = (SharedAddress(shared) & 0x3ffffu) >> 4;
  descriptor |= static_cast<uint64_t>(next >> 4) << 16;
  descriptor |= uint64_t{1024 >> 4} << 32;  // eight rows
  descriptor |= uint64_t{1} << 62;          // 128-byte swizzle
  return descriptor;
}

__device__ inline void ProductFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void ProductCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void ProductWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// c (+)= a b^T: [64, 16] x [128, 16]^T, both by descriptor with rows along K.
__device__ inline void Product64x128(float (&c)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
      "%9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, "
      "p, 1, 1, 0, 0;\n"
      "}\n"
      : ASYNCTLS_SUMS
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
// c += a b: [64, 16] in registers (as two halves of a 64 x 128 result lie) x [16, 128] by
// descriptor, rows along the summed dimension.
__device__ inline void Product64x128(float (&c)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
      "%9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, "
      "%66, %67}, %68, 1, "
      "1, 1, 1;\n"
      : ASYNCTLS_SUMS
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef ASYNCTLS_SUMS
#undef ASYNCTLS_SUMS8

template <int kRegisters>
__device__ inline void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace asynctls
