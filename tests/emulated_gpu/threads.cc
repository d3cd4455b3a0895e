// SPDX-License-Identifier: Apache-2.0
#include "tests/emulated_gpu/threads.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>

namespace asynctls::emulated {
namespace {

constexpr size_t kCopyBytes = 16;
constexpr size_t kStackBytes = 64 << 10;
constexpr int kRankShift = 28;
constexpr char kRubbish = '\xee';

// A thread and what it waits for: that a generation is another than the one it has seen.
struct Fiber : Thread {
  ucontext_t context;  // to begin with; from then on `place`, which costs no system call
  jmp_buf place;
  bool begun = false;
  std::vector<char> stack;
  const uint64_t* generation = nullptr;
  uint64_t seen = 0;
  bool done = false;

  bool Ready() const { return !done && (generation == nullptr || *generation != seen); }
};

jmp_buf scheduler;
const std::function<void()>* running;

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s\n", what);
  std::abort();
}

void Resume(Fiber& fiber) {
  current = &fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}

void GoBack(Fiber& self) {
  if (_setjmp(self.place) == 0) _longjmp(scheduler, 1);
}

void OpenIfAllAreThere(Barrier& barrier) {
  if (barrier.live == 0 || barrier.arrived < barrier.live) return;
  barrier.arrived = 0;
  ++barrier.generation;
}

void RunFiber() {
  (*running)();
  auto* self = static_cast<Fiber*>(current);
  self->done = true;
  for (Barrier* barrier : {&self->block->barrier, self->block->cluster_barrier}) {
    --barrier->live;
    OpenIfAllAreThere(*barrier);
  }
  GoBack(*self);
}

void Begin(Fiber& fiber, Block& block, unsigned index) {
  fiber.index = {index, 0, 0};
  fiber.lane = static_cast<int>(index) % kWarpLanes;
  fiber.warp = static_cast<int>(index) / kWarpLanes;
  fiber.block = &block;
  fiber.copies.assign(1, {});
  fiber.generation = nullptr;
  fiber.begun = fiber.done = false;
  fiber.stack.resize(kStackBytes);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, RunFiber, 0);
}

void RunToTheEnd(std::vector<std::unique_ptr<Fiber>>& fibers, size_t count) {
  for (size_t left = count; left > 0;) {
    bool moved = false;
    for (size_t i = 0; i < count; ++i) {
      Fiber& fiber = *fibers[i];
      if (!fiber.Ready()) continue;
      moved = true;
      Resume(fiber);
      left -= fiber.done;
    }
    if (!moved) Fail("all threads wait for each other");
  }
}

// What it holds at first is rubbish.
std::unique_ptr<Block> NewBlock(unsigned threads, size_t shared_bytes) {
  constexpr uintptr_t kAlignment = 1024;
  auto block = std::make_unique<Block>();
  block->warps.resize(threads / kWarpLanes);
  block->barrier.live = static_cast<int>(threads);
  block->memory.assign(shared_bytes + kAlignment, kRubbish);
  const auto begin = reinterpret_cast<uintptr_t>(block->memory.data());
  block->shared = reinterpret_cast<char*>((begin + kAlignment - 1) / kAlignment * kAlignment);
  return block;
}

}  // namespace

Thread* current;
dim3 grid, block_size;

void ComeLater() {
  static uint32_t calls = 0;
  for (uint32_t left = 1 + calls++ / kWarpLanes % kMostTurns; left > 0; --left) {
    GoBack(*static_cast<Fiber*>(current));
  }
}

void WaitForChange(const uint64_t& generation, uint64_t seen) {
  auto* self = static_cast<Fiber*>(current);
  while (generation == seen) {
    self->generation = &generation;
    self->seen = seen;
    GoBack(*self);
  }
  self->generation = nullptr;
}

void Wait(Barrier& barrier) {
  const uint64_t seen = barrier.generation;
  ++barrier.arrived;
  OpenIfAllAreThere(barrier);
  WaitForChange(barrier.generation, seen);
}

void ExchangeBytes(const void* mine, size_t bytes, void* all) {
  Warp& warp = current->block->warps[static_cast<size_t>(current->warp)];
  const uint64_t seen = warp.generation;
  auto& taken = warp.taken[seen % 2];
  std::memcpy(warp.given[current->lane], mine, bytes);
  warp.arrived |= 1u << current->lane;
  if (warp.arrived == ~0u) {
    std::memcpy(taken, warp.given, sizeof(taken));
    warp.arrived = 0;
    ++warp.generation;
  }
  WaitForChange(warp.generation, seen);
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    std::memcpy(static_cast<char*>(all) + static_cast<size_t>(lane) * bytes, taken[lane], bytes);
  }
}

uint32_t AddressOf(const void* p) {
  const Block& block = *current->block;
  const auto offset = static_cast<const char*>(p) - block.shared;
  const auto most = static_cast<int64_t>(block.memory.size());
  if (offset < 0 || offset >= most) Fail("an address that is not in dynamic shared memory");
  return static_cast<uint32_t>(offset) | static_cast<uint32_t>(block.rank) << kRankShift;
}

char* AtAddress(uint32_t address) {
  const Block& block = *(*current->block->cluster)[address >> kRankShift];
  return block.shared + AddressInRank(address, 0);
}

uint32_t AddressInRank(uint32_t address, int rank) {
  return (address & ((1u << kRankShift) - 1)) | static_cast<uint32_t>(rank) << kRankShift;
}

void BeginCopy(uint32_t to, const void* from) {
  if (to % kCopyBytes != 0) Fail("a copy to an address that is not a multiple of 16");
  char* at = AtAddress(to);
  std::memset(at, kRubbish, kCopyBytes);
  current->copies.back().push_back({at, from});
}

void CloseCopies() { current->copies.emplace_back(); }

void WaitForCopies(size_t pending) {
  auto& groups = current->copies;
  for (; groups.size() > pending + 1; groups.pop_front()) {
    for (const Copy& copy : groups.front()) {
      if (copy.from != nullptr) {
        std::memcpy(copy.to, copy.from, kCopyBytes);
      } else {
        std::memset(copy.to, 0, kCopyBytes);
      }
    }
  }
}

void Run(dim3 grid_size,
         unsigned threads,
         unsigned cluster,
         size_t shared_bytes,
         const std::function<void()>& kernel) {
  if (shared_bytes > kMostShared) Fail("more shared memory than a thread block can have");
  if (threads % kWarpLanes != 0 || grid_size.x % cluster != 0) Fail("a launch that cannot be");
  static std::vector<std::unique_ptr<Fiber>> fibers;
  while (fibers.size() < size_t{threads} * cluster) fibers.push_back(std::make_unique<Fiber>());
  grid = grid_size;
  block_size = {threads, 1, 1};
  running = &kernel;
  const unsigned clusters = grid_size.x / cluster * grid_size.y * grid_size.z;
  for (unsigned c = 0; c < clusters; ++c) {
    const unsigned per_row = grid_size.x / cluster;
    std::vector<std::unique_ptr<Block>> blocks;
    Barrier barrier{.live = static_cast<int>(threads * cluster)};
    for (unsigned rank = 0; rank < cluster; ++rank) {
      blocks.push_back(NewBlock(threads, shared_bytes));
      Block& block = *blocks.back();
      block.index = {
          c % per_row * cluster + rank, c / per_row % grid_size.y, c / per_row / grid_size.y};
      block.rank = static_cast<int>(rank);
      block.cluster = &blocks;
      block.cluster_barrier = &barrier;
      for (unsigned t = 0; t < threads; ++t) Begin(*fibers[rank * threads + t], block, t);
    }
    RunToTheEnd(fibers, size_t{threads} * cluster);
  }
}

}  // namespace asynctls::emulated
