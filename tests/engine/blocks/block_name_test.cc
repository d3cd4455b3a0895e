// SPDX-License-Identifier: Apache-2.0
#include "engine/blocks/block_name.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <string>
#include <vector>

namespace asynctls {
namespace {

// The published vectors of SipHash-2-4 with 128 bits (vectors.h): key 00..0f, input 00 01 02 ...
TEST(SipHash128, PublishedVectors) {
  const std::array<uint64_t, 2> key = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
  const std::string input = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
  EXPECT_EQ(SipHash128(key, ""), (BlockName{0xe6a825ba047f81a3, 0x930255c71472f66d}));
  EXPECT_EQ(SipHash128(key, absl::string_view(input.data(), 1)),
            (BlockName{0x44af996bd8c187da, 0x45fc229b11597634}));
  EXPECT_EQ(SipHash128(key, input), (BlockName{0x11a8b03399e99354, 0xd9c3cf970fec087e}));
}

TEST(BlockNamer, NamesDependOnEverythingBefore) {
  const BlockNamer namer;
  std::vector<Token> tokens(64);
  std::iota(tokens.begin(), tokens.end(), 0);
  std::vector<Token> other = tokens;
  other[63] = 0;
  const BlockName root = namer.Root("model", "");
  const BlockName first = namer.Next(root, tokens);
  EXPECT_EQ(first, namer.Next(namer.Root("model", ""), tokens));
  const auto key = [](const BlockName& name) { return std::pair(name.low, name.high); };
  const std::set<std::pair<uint64_t, uint64_t>> names = {
      key(root),
      key(first),
      key(namer.Next(root, other)),
      key(namer.Next(first, tokens)),
      key(namer.Next(namer.Root("model", "salt"), tokens)),
      key(namer.Next(namer.Root("other", ""), tokens)),
      key(namer.Root("modelsa", "lt")),
  };
  EXPECT_EQ(names.size(), 7);
  EXPECT_NE(BlockNamer().Root("model", ""), root) << "the key is drawn per namer";
}

}  // namespace
}  // namespace asynctls
