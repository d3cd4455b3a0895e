// SPDX-License-Identifier: Apache-2.0
// SipHash-2-4-128 and the chain built on it.
#include "engine/blocks/block_name.h"

#include <bit>
#include <cstring>
#include <random>
#include <string>

namespace asynctls {
namespace {

struct SipState {
  uint64_t v0, v1, v2, v3;

  void Rounds(int count) {
    for (int i = 0; i < count; ++i) {
      v0 += v1, v1 = std::rotl(v1, 13), v1 ^= v0, v0 = std::rotl(v0, 32);
      v2 += v3, v3 = std::rotl(v3, 16), v3 ^= v2;
      v0 += v3, v3 = std::rotl(v3, 21), v3 ^= v0;
      v2 += v1, v1 = std::rotl(v1, 17), v1 ^= v2, v2 = std::rotl(v2, 32);
    }
  }
  void Absorb(uint64_t word) {
    v3 ^= word;
    Rounds(2);
    v0 ^= word;
  }
  uint64_t Fold() const { return v0 ^ v1 ^ v2 ^ v3; }
};

template <class T>
void AppendBytes(std::string& out, const T* data, size_t count) {
  out.append(reinterpret_cast<const char*>(data), count * sizeof(T));
}

}  // namespace

BlockName SipHash128(const std::array<uint64_t, 2>& key, absl::string_view bytes) {
  SipState s = {key[0] ^ 0x736f6d6570736575,
                key[1] ^ 0x646f72616e646f6d ^ 0xee,
                key[0] ^ 0x6c7967656e657261,
                key[1] ^ 0x7465646279746573};
  const size_t whole = bytes.size() / 8 * 8;
  for (size_t i = 0; i < whole; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    s.Absorb(word);
  }
  uint64_t last = static_cast<uint64_t>(bytes.size()) << 56;
  for (size_t i = whole; i < bytes.size(); ++i) {
    last |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[i])) << (8 * (i - whole));
  }
  s.Absorb(last);
  s.v2 ^= 0xee;
  s.Rounds(4);
  BlockName name;
  name.low = s.Fold();
  s.v1 ^= 0xdd;
  s.Rounds(4);
  name.high = s.Fold();
  return name;
}

BlockNamer::BlockNamer() {
  std::random_device random;
  for (uint64_t& half : key_) half = static_cast<uint64_t>(random()) << 32 | random();
}

BlockName BlockNamer::Root(absl::string_view fingerprint, absl::string_view salt) const {
  const uint64_t length = fingerprint.size();
  std::string bytes;
  AppendBytes(bytes, &length, 1);
  AppendBytes(bytes, fingerprint.data(), fingerprint.size());
  AppendBytes(bytes, salt.data(), salt.size());
  return SipHash128(key_, bytes);
}

BlockName BlockNamer::Next(const BlockName& previous, absl::Span<const Token> tokens) const {
  const uint64_t parent[2] = {previous.low, previous.high};
  std::string bytes;
  bytes.reserve(sizeof parent + tokens.size() * sizeof(Token));
  AppendBytes(bytes, parent, 2);
  AppendBytes(bytes, tokens.data(), tokens.size());
  return SipHash128(key_, bytes);
}

}  // namespace asynctls
