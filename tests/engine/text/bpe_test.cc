// SPDX-License-Identifier: Apache-2.0
#include "engine/text/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>

namespace asynctls {
namespace {

std::array<uint32_t, 256> IdentityBytes() {
  std::array<uint32_t, 256> ids;
  std::iota(ids.begin(), ids.end(), 0u);
  return ids;
}

// Random merges over the letters a..d: each joins two symbols that exist by then, so that ranks are
// in no order that would help.
std::vector<Bpe::Merge> RandomMerges(std::mt19937& random, int count) {
  std::vector<uint32_t> symbols = {'a', 'b', 'c', 'd'};
  std::vector<Bpe::Merge> merges;
  std::set<std::pair<uint32_t, uint32_t>> seen;
  while (static_cast<int>(merges.size()) < count) {
    const uint32_t left = symbols[random() % symbols.size()];
    const uint32_t right = symbols[random() % symbols.size()];
    if (!seen.insert({left, right}).second) continue;
    const uint32_t whole = 256 + static_cast<uint32_t>(merges.size());
    merges.push_back({left, right, whole});
    symbols.push_back(whole);
  }
  std::shuffle(merges.begin(), merges.end(), random);
  return merges;
}

std::vector<uint32_t> MergeNaively(const std::string& word, const std::vector<Bpe::Merge>& merges) {
  std::map<std::pair<uint32_t, uint32_t>, size_t> ranks;
  for (size_t i = 0; i < merges.size(); ++i) ranks[{merges[i].left, merges[i].right}] = i;
  std::vector<uint32_t> ids(word.begin(), word.end());
  while (true) {
    size_t best = merges.size(), at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = ranks.find({ids[i], ids[i + 1]});
      if (found != ranks.end() && found->second < best) best = found->second, at = i;
    }
    if (best == merges.size()) return ids;
    ids[at] = merges[best].whole;
    ids.erase(ids.begin() + at + 1);
  }
}

std::string RandomWord(std::mt19937& random, size_t length) {
  std::string word;
  while (word.size() < length) word += static_cast<char>('a' + random() % 4);
  return word;
}

std::vector<uint32_t> Encode(const Bpe& bpe, const std::string& word, BpeScratch& scratch) {
  std::vector<uint32_t> ids;
  bpe.Encode(word, word.data() + word.size(), scratch, ids);
  scratch.Flush(ids);
  return ids;
}

// All lengths around the borders between cached, short and long words; each twice, so that the
// second comes from the cache.
TEST(BpeTest, MergesLikeTheDefinition) {
  std::mt19937 random(11);
  for (int round = 0; round < 20; ++round) {
    const auto merges = RandomMerges(random, 40);
    const Bpe bpe(IdentityBytes(), merges);
    BpeScratch scratch;
    for (size_t length = 1; length <= 140; ++length) {
      const std::string word = RandomWord(random, length);
      const auto want = MergeNaively(word, merges);
      ASSERT_EQ(Encode(bpe, word, scratch), want) << word;
      ASSERT_EQ(Encode(bpe, word, scratch), want) << word;
    }
  }
}

TEST(BpeTest, ReadingAheadDoesNotChangeAWord) {
  std::mt19937 random(12);
  const auto merges = RandomMerges(random, 40);
  const Bpe bpe(IdentityBytes(), merges);
  const std::string text = RandomWord(random, 64);
  for (size_t begin = 0; begin < 40; ++begin) {
    for (size_t length = 1; length <= 20; ++length) {
      const std::string word = text.substr(begin, length);
      BpeScratch scratch;
      std::vector<uint32_t> ids;
      bpe.Encode({text.data() + begin, length}, text.data() + text.size(), scratch, ids);
      scratch.Flush(ids);
      ASSERT_EQ(ids, MergeNaively(word, merges));
    }
  }
}

TEST(BpeTest, WordsWithZeroBytesAreNotConfusedWithShorterOnes) {
  const Bpe bpe(IdentityBytes(), {});
  BpeScratch scratch;
  for (size_t zeros : {1, 2, 3, 9, 2, 1}) {
    EXPECT_EQ(Encode(bpe, std::string(zeros, '\0'), scratch), std::vector<uint32_t>(zeros, 0));
  }
}

TEST(BpeTest, ManyIdsPassThroughTheBlock) {
  const Bpe bpe(IdentityBytes(), {});
  BpeScratch scratch;
  std::vector<uint32_t> ids;
  std::string text;
  for (int i = 0; i < 10000; ++i) {
    const std::string word(1 + i % 90, static_cast<char>('a' + i % 26));
    text += word;
    bpe.Encode(word, word.data() + word.size(), scratch, ids);
  }
  scratch.Flush(ids);
  EXPECT_EQ(ids, std::vector<uint32_t>(text.begin(), text.end()));
}

TEST(BpeTest, OfTwoEqualPairsTheLaterCounts) {
  const Bpe bpe(IdentityBytes(), {{'a', 'b', 300}, {'b', 'c', 301}, {'a', 'b', 302}});
  BpeScratch scratch;
  EXPECT_EQ(Encode(bpe, "abc", scratch), (std::vector<uint32_t>{'a', 301}));
  EXPECT_EQ(Encode(bpe, "ab", scratch), (std::vector<uint32_t>{302}));
}

// The steps per byte of one huge word stay below a constant, whatever its length.
TEST(BpeTest, HugeWordsTakeLinearSteps) {
  std::mt19937 random(13);
  const auto merges = RandomMerges(random, 200);
  const Bpe bpe(IdentityBytes(), merges);
  for (const char* kind : {"random", "one letter"}) {
    for (size_t length = 1 << 10; length <= 1 << 20; length *= 4) {
      BpeScratch scratch;
      const std::string word =
          kind[0] == 'r' ? RandomWord(random, length) : std::string(length, 'a');
      const auto ids = Encode(bpe, word, scratch);
      EXPECT_LE(ids.size(), length);
      EXPECT_LE(scratch.steps(), 8 * length) << kind << " " << length;
    }
  }
}

}  // namespace
}  // namespace asynctls
