// SPDX-License-Identifier: Apache-2.0
// The words of CUDA C++ that kernels are written in, for a C++ compiler: included before everything
// else in the files of kernels/cuda that run on the emulated GPU.
#pragma once

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tests/emulated_gpu/threads.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __shared__ static  // a cluster's thread blocks would share it: only dynamic memory there
#define threadIdx (asynctls::emulated::current->index)
#define blockIdx (asynctls::emulated::current->block->index)
#define gridDim (asynctls::emulated::grid)
#define blockDim (asynctls::emulated::block_size)

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::isnan;
template <typename A, typename B>
constexpr auto min(A a, B b) {
  using C = std::common_type_t<A, B>;
  return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(a) : static_cast<C>(b);
}
template <typename A, typename B>
constexpr auto max(A a, B b) {
  using C = std::common_type_t<A, B>;
  return static_cast<C>(a) > static_cast<C>(b) ? static_cast<C>(a) : static_cast<C>(b);
}

// ---- a block and its warps. Masks are of all lanes.
inline void __syncthreads() {
  asynctls::emulated::Wait(asynctls::emulated::current->block->barrier);
}
inline void __syncwarp() { asynctls::emulated::Exchange(0); }
inline void __threadfence() {}
template <typename T>
T __shfl_sync(unsigned, T x, int lane) {
  return asynctls::emulated::Exchange(x).of[lane % 32];
}
template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return asynctls::emulated::Exchange(x).of[asynctls::emulated::current->lane ^ mask];
}
template <typename T>
T __shfl_up_sync(unsigned, T x, int delta) {
  const auto all = asynctls::emulated::Exchange(x);
  const int lane = asynctls::emulated::current->lane;
  return lane >= delta ? all.of[lane - delta] : x;
}
inline unsigned __ballot_sync(unsigned, bool x) {
  const auto all = asynctls::emulated::Exchange(x);
  unsigned mask = 0;
  for (int i = 0; i < 32; ++i) mask |= static_cast<unsigned>(all.of[i]) << i;
  return mask;
}
inline bool __all_sync(unsigned mask, bool x) { return __ballot_sync(mask, x) == ~0u; }
template <typename T>
T __reduce_add_sync(unsigned, T x) {
  T sum = 0;
  for (const T y : asynctls::emulated::Exchange(x).of) sum += y;
  return sum;
}
template <typename T>
T __reduce_min_sync(unsigned, T x) {
  const auto all = asynctls::emulated::Exchange(x);
  return *std::min_element(all.of, all.of + 32);
}
template <typename T>
T __reduce_max_sync(unsigned, T x) {
  const auto all = asynctls::emulated::Exchange(x);
  return *std::max_element(all.of, all.of + 32);
}

// ---- memory
template <typename T, typename U>
T atomicAdd(T* to, U x) {
  const T old = *to;
  *to += x;
  return old;
}
inline int atomicMax(int* to, int x) {
  const int old = *to;
  *to = std::max(old, x);
  return old;
}
template <typename T>
T __ldcg(const T* from) {
  return *from;
}

// ---- numbers
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float __uint2float_rn(uint32_t x) { return static_cast<float>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<uint32_t>(bits)); }
// The sum rounded down; that of two floats of like size is exact in double.
inline float __fadd_rd(float a, float b) {
  const double exact = static_cast<double>(a) + b;
  const auto near = static_cast<float>(exact);
  return near > exact ? std::nextafter(near, -HUGE_VALF) : near;
}
inline uint32_t __float2uint_rn(float x) { return static_cast<uint32_t>(std::nearbyint(x)); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __vimax3_s32(int a, int b, int c) { return std::max(a, std::max(b, c)); }
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  }
  return sum;
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, int shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift % 32));
}
