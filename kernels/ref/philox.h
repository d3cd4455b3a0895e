// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the
// counter-based generator of sampling. Every backend draws the same number for the same counter.
#pragma once

#include <array>
#include <cstdint>

namespace asynctls {

inline std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                          std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// The u in [0, 1) of SampleArgs: the first word of the block at {position, index, 0, 0} under the
// key {low half of seed, high half}, times 2^-32.
inline double SampleUniform(uint64_t seed, uint32_t index, uint32_t position) {
  const auto block = Philox4x32({position, index, 0, 0},
                                {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return block[0] * 0x1p-32;
}

}  // namespace asynctls
