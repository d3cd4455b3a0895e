// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/thread_team.h"

#include <gtest/gtest.h>

#include <atomic>

namespace asynctls {
namespace {

TEST(ThreadTeamTest, EveryIndexOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadTeam team(threads);
    for (int64_t n : {0, 1, 2, 7, 100}) {
      for (int64_t grain : {1, 3, 1000}) {
        std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
        team.ParallelFor(n, grain, [&](int64_t i, Scratch&) { ++seen[i]; });
        for (const auto& count : seen) EXPECT_EQ(count, 1);
      }
    }
  }
}

TEST(ThreadTeamTest, ThreadsHaveScratchOfTheirOwn) {
  ThreadTeam team(3);
  std::atomic<int> clashes = 0;
  team.ParallelFor(200, [&](int64_t i, Scratch& scratch) {
    int64_t* mine = scratch.Get<int64_t>(0, 64);
    std::fill_n(mine, 64, i);
    for (int k = 0; k < 64; ++k) clashes += mine[k] != i;
  });
  EXPECT_EQ(clashes, 0);
}

TEST(ScratchTest, AlignedStableAndSeparate) {
  Scratch scratch;
  char* a = scratch.Get<char>(0, 100);
  char* b = scratch.Get<char>(1, 1);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % 64, 0u);
  EXPECT_NE(a, b);
  EXPECT_EQ(scratch.Get<char>(0, 60), a);
  std::fill_n(scratch.Get<char>(0, 100000), 100000, 'x');
}

}  // namespace
}  // namespace asynctls
