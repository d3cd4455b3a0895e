// SPDX-License-Identifier: Apache-2.0
// The machine instructions that the kernels are written in, and reductions over a warp. sm_80 and
// later, but for GridWait and GridTrigger, which do nothing before sm_90.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/device/dtype.h"

namespace asynctls {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kNegativeInfinity = -__builtin_huge_valf();

// Waits until everything that earlier kernels of the stream wrote can be read.
__device__ inline void GridWait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel's blocks come in when all of this kernel's have got here.
__device__ inline void GridTrigger() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ inline float WarpSum(float x) {
  for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(kAllLanes, x, i);
  return x;
}
__device__ inline float WarpMax(float x) {
  for (int i = 16; i > 0; i >>= 1) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, i));
  return x;
}

__device__ inline float Widen(bf16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
__device__ inline bf16 Narrow(float x) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }
// The two values of a word, the first in the low half.
__device__ inline float WidenLow(uint32_t x) { return __uint_as_float(x << 16); }
__device__ inline float WidenHigh(uint32_t x) { return __uint_as_float(x & 0xffff0000u); }
__device__ inline uint32_t NarrowPair(float low, float high) {
  uint32_t x;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}

// Adds one to a counter that the blocks of a job share; returns what it was. What this block wrote
// before (and a barrier lay between) can be read by the block that sees the last count, after a
// barrier of its own. One thread.
__device__ inline uint32_t ArriveAndCount(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

// Asks for the line of 128 bytes at `p` in L2.
__device__ inline void PrefetchL2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// 2^x, x <= 0; about 2 units in the last place.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The thread block's memory that the launch asks for.
template <typename T>
__device__ inline T* DynamicShared() {
  extern __shared__ __align__(128) uint8_t dynamic_shared[];
  return reinterpret_cast<T*>(dynamic_shared);
}
__device__ inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, or zeros.
__device__ inline void CopyAsync16(uint32_t to, const void* from, bool valid = true) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ inline void CopyCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void CopyWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
// For what is read once and shall not push other things out of L2.
__device__ inline uint64_t EvictFirst() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline void CopyAsync16(uint32_t to, const void* from, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to),
               "l"(from),
               "l"(policy)
               : "memory");
}

// Four 8x8 matrices of 16-bit values: lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void LoadMatrix4(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address));
}
__device__ inline void LoadMatrix4Transposed(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address));
}
// Transposes an 8x8 matrix of 16-bit values spread over the warp.
__device__ inline uint32_t TransposeMatrix(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// c += a b: [16, 16] x [16, 8] in bf16, fp32 sums.
__device__ inline void MultiplyAdd(float (&c)[4],
                                   const uint32_t (&a)[4],
                                   uint32_t b0,
                                   uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c = a b: [16, 32] x [32, 8], unsigned times signed bytes, exact.
__device__ inline void MultiplyBytes(int (&c)[4],
                                     const uint32_t (&a)[4],
                                     uint32_t b0,
                                     uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%10, %10, %10, %10};"
      : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
}
// c += a b: [16, 16] x [16, 8].
__device__ inline void MultiplyAddBytes(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
}

}  // namespace asynctls
