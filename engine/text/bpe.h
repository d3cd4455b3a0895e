// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding of one word: repeatedly merges the neighbouring pair of lowest rank (the
// leftmost of equals) until none is left. Knows ids and bytes only; files, text and special tokens
// are tokenizer.h's.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"

namespace asynctls {

// What one thread at a time needs to merge words: a block of ids on their way to the caller,
// buffers, and a cache of words seen. The cache has a fixed size (2 MiB) and a word has two places
// in it, so no input can make it grow or slow.
class BpeScratch {
 public:
  BpeScratch();

  // Pairs looked up and heap entries taken while merging: the cost of what was not in the cache.
  uint64_t steps() const { return steps_; }

  // Appends the ids that have piled up in the block.
  void Flush(std::vector<uint32_t>& out);

  // Gives back what a very long word has made grow.
  void ReleaseLargeBuffers();

 private:
  friend class Bpe;
  static constexpr size_t kMaxWordBytes = 16;  // of a cached word
  static constexpr size_t kMaxWordIds = 11;
  static constexpr int kPairBits = 14;
  // Words up to here are merged by scanning arrays, which is faster than a heap and, being bounded,
  // still linear over the words of a text.
  static constexpr size_t kShortWord = 64;
  static constexpr size_t kBlock = 2048;

  struct alignas(64) CachedWord {
    uint64_t low = 0, high = 0;  // the word's bytes, zeros behind them
    uint16_t length = 0;         // 0 = empty
    uint16_t count = 0;
    uint32_t ids[kMaxWordIds];
  };
  struct CachePair {
    CachedWord recent, older;
  };
  static_assert(sizeof(CachePair) == 128);

  struct Symbol {
    uint32_t id;
    uint32_t previous, next;  // indices
  };

  std::vector<CachePair> cache_;
  std::array<uint32_t, kBlock> block_;
  size_t block_count_ = 0;
  std::vector<Symbol> symbols_;  // of a long word
  std::vector<uint64_t> heap_;   // rank << 32 | index of the left symbol
  uint64_t steps_ = 0;
};

class Bpe {
 public:
  static constexpr uint32_t kMaxIds = 1 << 20;           // ids are below
  static constexpr uint32_t kMaxMerges = (1 << 24) - 1;  // ranks are below
  static constexpr size_t kMaxWordBytes = size_t{1} << 31;

  struct Merge {
    uint32_t left, right, whole;
  };

  // `byte_ids` are the ids of the 256 single bytes; a merge's rank is its index. If a pair occurs
  // twice the later one counts, as in HuggingFace. Requires: the limits above.
  Bpe(const std::array<uint32_t, 256>& byte_ids, const std::vector<Merge>& merges);

  // Appends the ids of `word` to `out`, except those that wait in the scratch for Flush.
  // `readable_end` is the end of the memory that may be read (not less than the word's): words far
  // enough from it are read 16 bytes at once. Time is O(n log n) for n bytes.
  // Requires: 1 <= word.size() < kMaxWordBytes. Const: any number of threads, each with its own
  // scratch.
  void Encode(absl::string_view word,
              const char* readable_end,
              BpeScratch& scratch,
              std::vector<uint32_t>& out) const;

 private:
  static constexpr uint32_t kNoRank = kMaxMerges;

  uint32_t RankOf(uint32_t left, uint32_t right) const;
  size_t MergeShort(absl::string_view word, uint32_t* ids, BpeScratch& scratch) const;
  void MergeLong(absl::string_view word, BpeScratch& scratch, std::vector<uint32_t>& out) const;

  std::array<uint32_t, 256> byte_ids_;
  std::vector<uint64_t> table_;  // left << 44 | right << 24 | rank; open addressing, <= 1/2 full
  int shift_;                    // 64 - log2(table size)
  std::vector<uint32_t> whole_;  // by rank
};

}  // namespace asynctls
