// SPDX-License-Identifier: Apache-2.0
#include "client/interrupt.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <csignal>
#include <mutex>

namespace asynctls {
namespace {

TEST(InterruptScopeTest, CallsTheFunctionAndTheProgramLivesOn) {
  for (int round = 0; round < 3; ++round) {
    std::mutex mu;
    std::condition_variable called;
    int calls = 0;
    InterruptScope scope([&] {
      std::lock_guard lock(mu);
      ++calls;
      called.notify_all();
    });
    for (int expected = 1; expected <= 2; ++expected) {
      std::raise(SIGINT);
      std::unique_lock lock(mu);
      called.wait(lock, [&] { return calls >= expected; });
    }
  }
}

TEST(InterruptScopeTest, EndsWithoutASignal) {
  int calls = 0;
  {
    InterruptScope scope([&] { ++calls; });
  }
  EXPECT_EQ(calls, 0);
}

TEST(InterruptScopeDeathTest, TheSignalEndsTheProgramAfterwards) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        {
          InterruptScope scope([] {});
        }
        std::raise(SIGINT);
      },
      ::testing::KilledBySignal(SIGINT),
      "");
}

}  // namespace
}  // namespace asynctls
