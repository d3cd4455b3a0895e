// SPDX-License-Identifier: Apache-2.0
#include "engine/text/bpe.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <functional>

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

BpeScratch::BpeScratch() : cache_(size_t{1} << kCacheBits) {}

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

size_t Bpe::MergeShort(absl::string_view word, BpeScratch& scratch) const {
  size_t count = word.size();
  uint32_t* const ids = scratch.ids_.data();
  uint32_t* const ranks = scratch.ranks_.data();
  for (size_t i = 0; i < count; ++i) ids[i] = byte_ids_[static_cast<uint8_t>(word[i])];
  for (size_t i = 0; i + 1 < count; ++i) ranks[i] = RankOf(ids[i], ids[i + 1]);
  scratch.steps_ += count;
  while (count > 1) {
    size_t best = 0;
    uint32_t best_rank = ranks[0];
    for (size_t i = 1; i + 1 < count; ++i) {
      if (ranks[i] < best_rank) best_rank = ranks[i], best = i;
    }
    if (best_rank == kNoRank) break;
    ids[best] = whole_[best_rank];
    --count;
    std::memmove(ids + best + 1, ids + best + 2, (count - best - 1) * sizeof(uint32_t));
    if (best + 1 < count) {
      std::memmove(ranks + best, ranks + best + 1, (count - best - 1) * sizeof(uint32_t));
      ranks[best] = RankOf(ids[best], ids[best + 1]);
    }
    if (best > 0) ranks[best - 1] = RankOf(ids[best - 1], ids[best]);
    scratch.steps_ += 2;
  }
  return count;
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
  if (word.size() > BpeScratch::kShortWord) return MergeLong(word, scratch, out);
  const auto merge_and_append = [&] {
    const size_t count = MergeShort(word, scratch);
    out.insert(out.end(), scratch.ids_.begin(), scratch.ids_.begin() + count);
    return count;
  };
  if (word.size() > BpeScratch::kMaxWordBytes) {
    merge_and_append();
    return;
  }
  uint64_t low, high;
  LoadWord(word, readable_end, low, high);
  BpeScratch::CachedWord& cached = scratch.cache_[HashWord(low, high, BpeScratch::kCacheBits)];
  if (cached.low == low && cached.high == high && cached.length == word.size()) {
    out.insert(out.end(), cached.ids, cached.ids + cached.count);
    return;
  }
  const size_t count = merge_and_append();
  if (count > BpeScratch::kMaxWordIds) return;
  cached.low = low;
  cached.high = high;
  cached.length = static_cast<uint8_t>(word.size());
  cached.count = static_cast<uint8_t>(count);
  std::copy_n(scratch.ids_.begin(), count, cached.ids);
}

}  // namespace asynctls
