// SPDX-License-Identifier: Apache-2.0
#include "engine/text/bpe.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <functional>
#include <utility>

namespace asynctls {
namespace {

constexpr uint64_t kEmptySlot = ~uint64_t{0};
constexpr uint32_t kNone = ~uint32_t{0};

uint64_t HashPair(uint64_t pair) { return pair * 0x9e3779b97f4a7c15u; }

// The first `length` <= 16 bytes of `word` as two little-endian numbers, zeros behind them.
inline void LoadWord(absl::string_view word,
                     const char* readable_end,
                     uint64_t& low,
                     uint64_t& high) {
  char bytes[16] = {};
  const size_t length = word.size();
  if (readable_end - word.data() < 16) {
    std::memcpy(bytes, word.data(), length);
    std::memcpy(&low, bytes, 8);
    std::memcpy(&high, bytes + 8, 8);
    return;
  }
  std::memcpy(&low, word.data(), 8);
  std::memcpy(&high, word.data() + 8, 8);
  if (length < 8) {
    low &= (uint64_t{1} << (8 * length)) - 1;
    high = 0;
  } else if (length < 16) {
    high &= (uint64_t{1} << (8 * (length - 8))) - 1;
  }
}

inline size_t HashWord(uint64_t low, uint64_t high, int bits) {
  const uint64_t mixed = (low ^ (high << 29 | high >> 35)) * 0x9e3779b97f4a7c15u;
  return static_cast<size_t>((mixed ^ (mixed >> 29)) * 0xbf58476d1ce4e5b9u >> (64 - bits));
}

}  // namespace

BpeScratch::BpeScratch() : cache_(size_t{1} << kPairBits) {}

void BpeScratch::Flush(std::vector<uint32_t>& out) {
  out.insert(out.end(), block_.data(), block_.data() + block_count_);
  block_count_ = 0;
}

void BpeScratch::ReleaseLargeBuffers() {
  constexpr size_t kKeep = 1 << 16;  // entries
  if (symbols_.capacity() > kKeep) symbols_ = {};
  if (heap_.capacity() > kKeep) heap_ = {};
}

Bpe::Bpe(const std::array<uint32_t, 256>& byte_ids, const std::vector<Merge>& merges)
    : byte_ids_(byte_ids) {
  assert(merges.size() < kMaxMerges);
  int bits = 4;
  while ((size_t{1} << bits) < 2 * merges.size()) ++bits;
  shift_ = 64 - bits;
  table_.assign(size_t{1} << bits, kEmptySlot);
  whole_.reserve(merges.size());
  for (const Merge& merge : merges) {
    assert(merge.left < kMaxIds && merge.right < kMaxIds && merge.whole < kMaxIds);
    const uint64_t pair = uint64_t{merge.left} << 20 | merge.right;
    size_t slot = HashPair(pair) >> shift_;
    while (table_[slot] != kEmptySlot && table_[slot] >> 24 != pair) {
      slot = (slot + 1) & (table_.size() - 1);
    }
    table_[slot] = pair << 24 | whole_.size();
    whole_.push_back(merge.whole);
  }
}

inline uint32_t Bpe::RankOf(uint32_t left, uint32_t right) const {
  const uint64_t pair = uint64_t{left} << 20 | right;
  size_t slot = HashPair(pair) >> shift_;
  while (true) {
    const uint64_t entry = table_[slot];
    if (entry >> 24 == pair) return entry & 0xffffff;
    if (entry == kEmptySlot) return kNoRank;
    slot = (slot + 1) & (table_.size() - 1);
  }
}

// Writes the ids to `ids`, which has room for one per byte, and returns their number.
size_t Bpe::MergeShort(absl::string_view word, uint32_t* ids, BpeScratch& scratch) const {
  // A symbol lives at the index of its first byte. pairs[i] is rank << 8 | i for the pair that
  // begins at i, so that the least of all is the pair to merge next.
  constexpr size_t kRoom = BpeScratch::kShortWord;
  uint32_t pairs[kRoom];
  uint8_t previous[kRoom], next[kRoom];
  const uint32_t count = static_cast<uint32_t>(word.size());
  for (uint32_t i = 0; i < count; ++i) {
    ids[i] = byte_ids_[static_cast<uint8_t>(word[i])];
    previous[i] = static_cast<uint8_t>(i - 1);
    next[i] = static_cast<uint8_t>(i + 1);
  }
  const auto look_up = [&](uint32_t i) {
    pairs[i] = (next[i] == count ? kNoRank : RankOf(ids[i], ids[next[i]])) << 8 | i;
  };
  for (uint32_t i = 0; i < count; ++i) look_up(i);
  uint32_t left = count;  // symbols
  while (true) {
    uint32_t best = pairs[0];
    for (uint32_t i = 1; i < count; ++i) best = std::min(best, pairs[i]);
    const uint32_t rank = best >> 8;
    if (rank == kNoRank) break;
    const uint32_t at = best & 0xff;
    const uint32_t gone = next[at];
    ids[at] = whole_[rank];
    pairs[gone] = kNoRank << 8 | gone;
    next[at] = next[gone];
    if (next[at] != count) previous[next[at]] = static_cast<uint8_t>(at);
    look_up(at);
    if (at > 0) look_up(previous[at]);
    --left;
  }
  scratch.steps_ += count + 2 * (count - left);
  uint32_t out = 0;
  for (uint32_t i = 0; i < count; i = next[i]) ids[out++] = ids[i];
  return out;
}

void Bpe::MergeLong(absl::string_view word, BpeScratch& scratch, std::vector<uint32_t>& out) const {
  std::vector<BpeScratch::Symbol>& symbols = scratch.symbols_;
  std::vector<uint64_t>& heap = scratch.heap_;
  const uint32_t count = static_cast<uint32_t>(word.size());
  symbols.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    symbols[i] = {byte_ids_[static_cast<uint8_t>(word[i])], i - 1, i + 1};
  }
  symbols[count - 1].next = kNone;

  heap.clear();
  const auto candidate = [&](uint32_t left) -> uint64_t {
    const uint32_t rank = RankOf(symbols[left].id, symbols[symbols[left].next].id);
    ++scratch.steps_;
    return rank == kNoRank ? kEmptySlot : uint64_t{rank} << 32 | left;
  };
  for (uint32_t i = 0; i + 1 < count; ++i) {
    if (const uint64_t entry = candidate(i); entry != kEmptySlot) heap.push_back(entry);
  }
  const auto by_rank_then_place = std::greater<uint64_t>();
  std::make_heap(heap.begin(), heap.end(), by_rank_then_place);
  const auto push = [&](uint32_t left) {
    if (const uint64_t entry = candidate(left); entry != kEmptySlot) {
      heap.push_back(entry);
      std::push_heap(heap.begin(), heap.end(), by_rank_then_place);
    }
  };

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), by_rank_then_place);
    const uint32_t rank = static_cast<uint32_t>(heap.back() >> 32);
    const uint32_t left = static_cast<uint32_t>(heap.back());
    heap.pop_back();
    ++scratch.steps_;
    BpeScratch::Symbol& symbol = symbols[left];
    // Entries whose pair has changed since are skipped: a merged-away symbol has id kNone.
    if (symbol.id == kNone || symbol.next == kNone) continue;
    BpeScratch::Symbol& right = symbols[symbol.next];
    if (RankOf(symbol.id, right.id) != rank) continue;
    symbol.id = whole_[rank];
    right.id = kNone;
    symbol.next = right.next;
    if (symbol.next != kNone) {
      symbols[symbol.next].previous = left;
      push(left);
    }
    if (symbol.previous != kNone) push(symbol.previous);
  }
  for (uint32_t i = 0; i != kNone; i = symbols[i].next) out.push_back(symbols[i].id);
}

void Bpe::Encode(absl::string_view word,
                 const char* readable_end,
                 BpeScratch& scratch,
                 std::vector<uint32_t>& out) const {
  static_assert(BpeScratch::kShortWord >= BpeScratch::kMaxWordIds);
  if (scratch.block_count_ + BpeScratch::kShortWord > BpeScratch::kBlock) scratch.Flush(out);
  uint32_t* const ids = scratch.block_.data() + scratch.block_count_;
  if (word.size() > BpeScratch::kMaxWordBytes) {
    if (word.size() > BpeScratch::kShortWord) {
      scratch.Flush(out);
      return MergeLong(word, scratch, out);
    }
    scratch.block_count_ += MergeShort(word, ids, scratch);
    return;
  }
  uint64_t low, high;
  LoadWord(word, readable_end, low, high);
  BpeScratch::CachePair& pair = scratch.cache_[HashWord(low, high, BpeScratch::kPairBits)];
  const auto is_word = [&](const BpeScratch::CachedWord& cached) {
    return cached.low == low && cached.high == high && cached.length == word.size();
  };
  if (!is_word(pair.recent)) {
    std::swap(pair.recent, pair.older);
    if (!is_word(pair.recent)) {
      const size_t count = MergeShort(word, ids, scratch);
      scratch.block_count_ += count;
      if (count > BpeScratch::kMaxWordIds) return;
      pair.recent.low = low;
      pair.recent.high = high;
      pair.recent.length = static_cast<uint16_t>(word.size());
      pair.recent.count = static_cast<uint16_t>(count);
      std::copy_n(ids, count, pair.recent.ids);
      return;
    }
  }
  // All of it, whatever the count: a copy of fixed size is faster.
  std::memcpy(ids, pair.recent.ids, sizeof(pair.recent.ids));
  scratch.block_count_ += pair.recent.count;
}

}  // namespace asynctls
