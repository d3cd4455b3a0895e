// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/task_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace asynctls {
namespace {

TEST(TaskPoolTest, OneThreadRunsTasksInOrder) {
  std::vector<int> order;
  {
    TaskPool pool(1);
    for (int i = 0; i < 100; ++i) pool.Submit([&order, i] { order.push_back(i); });
  }
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(TaskPoolTest, TasksOfAllThreadsRunBeforeTheEnd) {
  std::atomic<int> done = 0;
  {
    TaskPool pool(3);
    for (int t = 0; t < 4; ++t) {
      pool.Submit([&] {
        for (int i = 0; i < 250; ++i) pool.Submit([&] { ++done; });
      });
    }
  }
  EXPECT_EQ(done, 1000);
}

TEST(TaskPoolTest, TwoThreadsRunAtTheSameTime) {
  TaskPool pool(2);
  std::promise<void> first, second;
  std::future<void> first_done = first.get_future(), second_done = second.get_future();
  pool.Submit([&] {
    second_done.wait();  // would never end on one thread
    first.set_value();
  });
  pool.Submit([&] { second.set_value(); });
  first_done.wait();
  SUCCEED();
}

}  // namespace
}  // namespace asynctls
