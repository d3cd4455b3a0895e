// SPDX-License-Identifier: Apache-2.0
#include "engine/parallel/gloo_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <thread>
#include <vector>

namespace asynctls {
namespace {

// Runs `body` as every rank of a group, each on its own thread.
void RunGroup(int ranks, const std::function<void(int rank, Communicator&)>& body) {
  absl::StatusOr<std::string> rendezvous = GlooCommunicator::MakeRendezvous();
  ASSERT_TRUE(rendezvous.ok()) << rendezvous.status();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      absl::StatusOr<std::unique_ptr<GlooCommunicator>> group =
          GlooCommunicator::Connect({rank, ranks}, *rendezvous, absl::Seconds(30));
      ASSERT_TRUE(group.ok()) << group.status();
      body(rank, **group);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(std::filesystem::exists(*rendezvous));
}

TEST(GlooCommunicatorTest, SumsInFp32AndRoundsOnce) {
  RunGroup(3, [](int rank, Communicator& group) {
    // 256 + 1 + 1: bf16 has 8 bits, so 256 + 1 rounds back to 256 when rounded in between.
    std::vector<bf16> x(5, ToBf16(rank == 0 ? 256.0f : 1.0f));
    ASSERT_TRUE(group.AllReduceSum({x.data(), {5}}).ok());
    for (const bf16 v : x) EXPECT_EQ(ToFloat(v), 258.0f);
    ASSERT_TRUE(group.AllReduceSum({x.data(), {0}}).ok());
  });
}

TEST(GlooCommunicatorTest, GathersColumnsInRankOrder) {
  RunGroup(2, [](int rank, Communicator& group) {
    // [2 rows, 3 columns]: 100 row + 10 rank + column.
    std::vector<float> part;
    for (int i = 0; i < 6; ++i) part.push_back(100.0f * (i / 3) + 10.0f * rank + i % 3);
    std::vector<float> all(12);
    ASSERT_TRUE(group.AllGather({part.data(), {2, 3}}, {all.data(), {2, 6}}).ok());
    EXPECT_THAT(all, ::testing::ElementsAre(0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112));
  });
}

TEST(GlooCommunicatorTest, BroadcastsFromRankZero) {
  RunGroup(2, [](int rank, Communicator& group) {
    std::vector<int32_t> x = {rank == 0 ? 7 : -1, rank == 0 ? 8 : -1};
    ASSERT_TRUE(group.Broadcast({x.data(), {2}}).ok());
    EXPECT_THAT(x, ::testing::ElementsAre(7, 8));
  });
}

TEST(GlooCommunicatorTest, APeerThatLeavesIsAnErrorNotAHang) {
  RunGroup(2, [](int rank, Communicator& group) {
    if (rank == 1) return;
    std::vector<int32_t> x = {1};
    std::vector<float> part(1), all(2);
    absl::Status status;
    for (int i = 0; i < 100 && status.ok(); ++i) {
      status = group.AllGather({part.data(), {1, 1}}, {all.data(), {1, 2}});
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  });
}

TEST(GlooCommunicatorTest, RefusesImpossibleGroups) {
  EXPECT_EQ(GlooCommunicator::Connect({0, 2}, "/no/such/folder", absl::Seconds(1)).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GlooCommunicator::Connect({2, 2}, "/tmp", absl::Seconds(1)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace asynctls
