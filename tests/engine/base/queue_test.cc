// SPDX-License-Identifier: Apache-2.0
#include "engine/base/queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "absl/time/clock.h"

namespace asynctls {
namespace {

TEST(Queue, TakesEverythingInOrder) {
  Queue<std::unique_ptr<int>> queue;
  for (int i = 0; i < 3; ++i) queue.Push(std::make_unique<int>(i));
  const auto items = queue.PopAll(absl::InfiniteFuture());
  ASSERT_EQ(items.size(), 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(*items[i], i);
}

TEST(Queue, IsEmptyOnlyAfterTheDeadline) {
  Queue<int> queue;
  const absl::Time deadline = absl::Now() + absl::Milliseconds(5);
  EXPECT_TRUE(queue.PopAll(deadline).empty());
  EXPECT_GE(absl::Now(), deadline);
  EXPECT_TRUE(queue.PopAll(absl::InfinitePast()).empty());
  queue.Push(1);
  EXPECT_EQ(queue.PopAll(absl::InfinitePast()).size(), 1);
}

TEST(Queue, ManyProducersLoseNothing) {
  Queue<int> queue;
  std::vector<std::thread> producers;
  for (int t = 0; t < 4; ++t) {
    producers.emplace_back([&queue] {
      for (int i = 0; i < 1000; ++i) queue.Push(i);
    });
  }
  size_t count = 0;
  while (count < 4000) count += queue.PopAll(absl::InfiniteFuture()).size();
  for (std::thread& producer : producers) producer.join();
  EXPECT_EQ(count, 4000);
}

}  // namespace
}  // namespace asynctls
