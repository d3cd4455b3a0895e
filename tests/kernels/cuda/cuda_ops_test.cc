// SPDX-License-Identifier: Apache-2.0
// What CudaOps does beside the ops: saying why it cannot be made, copies, and graphs.
#include "kernels/cuda/cuda_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <vector>

#include "tests/testing/compare.h"
#include "tests/testing/gpu.h"
#include "tests/testing/paged_kv.h"

namespace asynctls::testing {
namespace {

TEST(CudaOpsTest, ADeviceThatIsNotThereIsNamed) {
  const auto made = CudaOps::Create(1000, {});
  EXPECT_EQ(made.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(made.status().message()), ::testing::HasSubstr("device 1000"));
}

TEST(CudaOpsTest, ScratchGrowsWithTheLimits) {
  CudaLimits small, more_rows;
  small.decode_rows = 1;
  more_rows.decode_rows = 64;
  EXPECT_GT(CudaOps::Bytes(small), 0);
  EXPECT_GT(CudaOps::Bytes(more_rows), CudaOps::Bytes(small));
}

class CudaOpsOnGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (SharedGpu() == nullptr) GTEST_SKIP() << "no GPU on this machine";
  }
};

TEST_F(CudaOpsOnGpuTest, CopiesThereAndBack) {
  CudaOps& gpu = *SharedGpu();
  auto device = Buffer::Allocate(MemoryKind::kDevice, 4096);
  ASSERT_TRUE(device.ok());
  const auto there = Normal<float, 1>({1024}, 1);
  Tensor<float, 1> back({1024});
  gpu.Upload(device->data(), there.data(), 4096);
  gpu.Download(back.data(), device->data(), 4096);
  gpu.Wait();
  EXPECT_TRUE(Same(back.view(), there.view()));
}

// Places on the stream: waiting for one, being told of it, and the time between two.
TEST_F(CudaOpsOnGpuTest, MarksAreReachedInOrder) {
  CudaOps& gpu = *SharedGpu();
  const PagedKv kv(2, 40, 2, 128, 1);
  const auto rows = List<DecodeRow>({{0, 2500, 0, 0, 1, DecodeRow::kExact}});
  const auto q = Normal<bf16, 3>({1, 8, 128}, 2);
  Tensor<bf16, 2> out({1, 1024});
  std::promise<void> told[3];
  std::vector<std::function<void()>> calls;
  for (auto& promise : told) calls.push_back([&promise] { promise.set_value(); });
  for (int i = 0; i < 3; ++i) {
    gpu.DecodeAttend({q, kv.view(), rows, 0.1f, out});
    gpu.Mark(i);
    gpu.WhenDone(i, calls[i]);
  }
  for (auto& promise : told) promise.get_future().wait();
  gpu.WaitFor(2);
  EXPECT_GT(gpu.Seconds(0, 1), 0);
  EXPECT_NEAR(gpu.Seconds(0, 2), gpu.Seconds(0, 1) + gpu.Seconds(1, 2), 2e-6);
}

// A graph reads what its arguments' memory holds when it runs, and gives the same bits every time.
TEST_F(CudaOpsOnGpuTest, AGraphReplaysOnNewContents) {
  CudaOps& gpu = *SharedGpu();
  const PagedKv kv(2, 40, 2, 128, 1);
  const auto rows =
      List<DecodeRow>({{0, 2500, 0, 0, 1, DecodeRow::kExact}, {1, 77, 0, 0, 1, DecodeRow::kExact}});
  const auto q = Normal<bf16, 3>({2, 8, 128}, 2);
  Tensor<bf16, 2> replayed({2, 1024}), called({2, 1024}), first({2, 1024});
  const DecodeAttendArgs args{q, kv.view(), rows, 0.1f, replayed};
  const uint64_t key = uint64_t{1} << 60;
  for (const int32_t length : {2500, 1, 64, 2560, 1000}) {
    rows(0).length = length;
    gpu.Replay(key, [&] { gpu.DecodeAttend(args); });
    gpu.DecodeAttend({q, kv.view(), rows, 0.1f, called});
    gpu.Wait();
    EXPECT_TRUE(Same(replayed.view(), called.view())) << length;
  }
  first.CopyFrom(replayed);
  for (int i = 0; i < 1000; ++i) {
    replayed.Fill(ToBf16(-1));
    gpu.Replay(key, [&] { gpu.DecodeAttend(args); });
    gpu.Wait();
    ASSERT_TRUE(Same(replayed.view(), first.view())) << i;
  }
}

}  // namespace
}  // namespace asynctls::testing
