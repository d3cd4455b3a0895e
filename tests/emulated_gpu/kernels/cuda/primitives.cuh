// SPDX-License-Identifier: Apache-2.0
// Takes the place of kernels/cuda/primitives.cuh on the emulated GPU: the same functions, by what
// the instructions' descriptions say (PTX ISA 8.8, chapters 9.7.9 and 9.7.14).
#pragma once

#include "kernels/device/dtype.h"
#include "tests/emulated_gpu/cuda_words.h"

namespace asynctls {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kNegativeInfinity = -__builtin_huge_valf();

inline void GridWait() { emulated::ComeLater(); }
inline void GridTrigger() {}

inline float WarpSum(float x) {
  for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(kAllLanes, x, i);
  return x;
}
inline float WarpMax(float x) {
  for (int i = 16; i > 0; i >>= 1) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, i));
  return x;
}

inline float Widen(bf16 x) { return ToFloat(x); }
inline bf16 Narrow(float x) { return ToBf16(x); }
inline float WidenLow(uint32_t x) { return __uint_as_float(x << 16); }
inline float WidenHigh(uint32_t x) { return __uint_as_float(x & 0xffff0000u); }
inline uint32_t NarrowPair(float low, float high) {
  return uint32_t{Narrow(high).bits} << 16 | Narrow(low).bits;
}
inline float Exp2(float x) { return std::exp2(x); }

inline uint32_t ArriveAndCount(uint32_t* counter) { return (*counter)++; }

template <typename T>
T LoadShared(uint32_t address) {
  T x;
  std::memcpy(&x, emulated::AtAddress(address), sizeof(x));
  return x;
}
template <typename T>
T* DynamicShared() {
  return reinterpret_cast<T*>(emulated::current->block->shared);
}
inline uint32_t SharedAddress(const void* p) { return emulated::AddressOf(p); }
inline void CopyAsync16(uint32_t to, const void* from, bool valid = true) {
  emulated::BeginCopy(to, valid ? from : nullptr);
}
inline uint64_t EvictFirst() { return 0; }
inline void PrefetchL2(const void*) {}
inline void CopyAsync16(uint32_t to, const void* from, uint64_t) { emulated::BeginCopy(to, from); }
inline void CopyCommit() { emulated::CloseCopies(); }
template <int kPending>
void CopyWait() {
  emulated::WaitForCopies(kPending);
}

inline void LoadMatrix4(uint32_t (&x)[4], uint32_t address) {
  const auto rows = emulated::Exchange(address);
  const int lane = emulated::current->lane;
  for (int m = 0; m < 4; ++m) {
    x[m] = LoadShared<uint32_t>(rows.of[8 * m + lane / 4] + static_cast<uint32_t>(lane % 4 * 4));
  }
}
inline void LoadMatrix4Transposed(uint32_t (&x)[4], uint32_t address) {
  const auto rows = emulated::Exchange(address);
  const int lane = emulated::current->lane, row = lane % 4 * 2;
  const auto column = static_cast<uint32_t>(lane / 4 * 2);  // in bytes
  for (int m = 0; m < 4; ++m) {
    x[m] = LoadShared<uint16_t>(rows.of[8 * m + row] + column) |
           uint32_t{LoadShared<uint16_t>(rows.of[8 * m + row + 1] + column)} << 16;
  }
}
inline uint32_t TransposeMatrix(uint32_t x) {
  const auto all = emulated::Exchange(x);
  const int lane = emulated::current->lane, row = lane % 4 * 2, column = lane / 4;
  auto value = [&](int r, int c) { return all.of[r * 4 + c / 2] >> (c % 2 * 16) & 0xffff; };
  return value(row, column) | value(row + 1, column) << 16;
}

// A lane's fragments of a product: a[0..3] are rows quad, quad + 8 of the first and of the second
// half of K, b0 and b1 column quad of the halves; the four values (or eight, or two) of a register
// are neighbours in K. Results: rows quad (0, 1) and quad + 8 (2, 3), columns 2 t and 2 t + 1.
struct Fragments {
  uint32_t a[4], b0, b1;
};
template <int kHalf, typename T, typename Multiply>
void MultiplyFragments(T (&c)[4], const Fragments& own, Multiply multiply) {
  constexpr int kOfRegister = kHalf / 4;
  const auto all = emulated::Exchange(own);
  const int lane = emulated::current->lane;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 2 * kHalf; ++k) {
      const int t = k % kHalf / kOfRegister;
      const Fragments& of_row = all.of[row % 8 * 4 + t];
      const Fragments& of_column = all.of[column * 4 + t];
      c[i] += multiply(of_row.a[row / 8 + k / kHalf * 2],
                       k < kHalf ? of_column.b0 : of_column.b1,
                       k % kOfRegister);
    }
  }
}
inline void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  auto value = [](uint32_t x, int i) { return i == 0 ? WidenLow(x) : WidenHigh(x); };
  MultiplyFragments<8>(c, {{a[0], a[1], a[2], a[3]}, b0, b1}, [&](uint32_t x, uint32_t y, int i) {
    return value(x, i) * value(y, i);
  });
}
inline void MultiplyAddBytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MultiplyFragments<16>(c, {{a[0], a[1], a[2], a[3]}, b0, b1}, [](uint32_t x, uint32_t y, int i) {
    return static_cast<uint8_t>(x >> (8 * i)) * static_cast<int8_t>(y >> (8 * i));
  });
}
inline void MultiplyAddBytes(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  MultiplyAddBytes(c, {a0, a1, 0, 0}, b, 0);
}
inline void MultiplyBytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  for (int& x : c) x = 0;
  MultiplyAddBytes(c, a, b0, b1);
}

}  // namespace asynctls
