// SPDX-License-Identifier: Apache-2.0
// The threads of an emulated GPU: one OS thread runs them all, switching at barriers and wherever a
// warp exchanges values. The thread blocks of a cluster are there together, clusters come one after
// the other. Asynchronous copies come as late as they may, and until then there is rubbish. What
// else depends on time is not emulated: memory is ordered, and a kernel ends before the next
// begins. A deadlock ends the process.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace asynctls::emulated {

constexpr int kWarpLanes = 32;
constexpr size_t kMostShared = 227 << 10;  // dynamic shared memory of a thread block

struct Warp {
  static constexpr size_t kMostBytes = 32;  // of a value

  uint32_t arrived = 0;     // lanes, at the exchange under way
  uint64_t generation = 0;  // exchanges done
  char given[kWarpLanes][kMostBytes];
  char taken[2][kWarpLanes][kMostBytes];  // of the last two exchanges
};

// Where `live` threads wait for each other.
struct Barrier {
  int live = 0, arrived = 0;
  uint64_t generation = 0;
};

struct Block {
  dim3 index;
  int rank;  // in its cluster
  std::vector<std::unique_ptr<Block>>* cluster;
  Barrier* cluster_barrier;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<char> memory;
  char* shared;  // dynamic shared memory, in `memory`
};

// An asynchronous copy of 16 bytes; `from` null: of zeros.
struct Copy {
  char* to;
  const void* from;
};

struct Thread {
  dim3 index;
  int lane, warp;
  Block* block;
  std::deque<std::vector<Copy>> copies;  // groups not yet waited for; the last is still open
};

extern Thread* current;
extern dim3 grid, block_size;

void Wait(Barrier& barrier);
// Returns after other threads have gone on, once to kMostTurns times as far as they can without
// this one: another number of times at each call.
constexpr uint32_t kMostTurns = 7;
void ComeLater();
// Returns when `generation` is another than `seen`.
void WaitForChange(const uint64_t& generation, uint64_t seen);

// Every lane's value, for every lane of the warp.
template <typename T>
struct Lanes {
  T of[kWarpLanes];
};
// Returns when all lanes of the warp have called it.
void ExchangeBytes(const void* mine, size_t bytes, void* all);
template <typename T>
Lanes<T> Exchange(const T& mine) {
  static_assert(sizeof(T) <= Warp::kMostBytes);
  Lanes<T> all;
  ExchangeBytes(&mine, sizeof(T), &all);
  return all;
}

// Shared memory by 32-bit addresses: the rank above, the offset in dynamic shared memory below.
uint32_t AddressOf(const void* p);
char* AtAddress(uint32_t address);
uint32_t AddressInRank(uint32_t address, int rank);

// The current thread's asynchronous copies: one is begun; the open group is closed; all groups but
// the last `pending` are there.
void BeginCopy(uint32_t to, const void* from);
void CloseCopies();
void WaitForCopies(size_t pending);

// Runs `kernel` as every thread of the grid.
void Run(dim3 grid_size,
         unsigned threads,
         unsigned cluster,
         size_t shared_bytes,
         const std::function<void()>& kernel);

}  // namespace asynctls::emulated
