// SPDX-License-Identifier: Apache-2.0
// What CudaOps does beside the ops: saying why it cannot be made, copies, and graphs.
#include "kernels/cuda/cuda_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <future>
#include <utility>
#include <vector>

#include "kernels/device/carver.h"
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

// At the shapes of Qwen3-8B and 14B, where the variants for different numbers of rows differ most.
TEST_F(CudaOpsOnGpuTest, DecodeProductsOfTrueShapesHaveTheSameBitsForAnyNumberOfRows) {
  CudaOps& gpu = *SharedGpu();
  constexpr int64_t kMost = 64;
  for (const auto& [features, width] :
       {std::pair<int64_t, int64_t>{6144, 4096}, {4096, 12288}, {24576, 4096}, {5120, 17408}}) {
    auto memory = Buffer::Allocate(
        MemoryKind::kDevice, 2 * (features * width + kMost * (width + features + features / 2)));
    ASSERT_TRUE(memory.ok());
    Carver carver(*memory);
    Matrix w{carver.Take<bf16, 2>({features, width})};
    const auto x = carver.Take<bf16, 2>({kMost, width});
    const auto out = carver.Take<bf16, 2>({kMost, features});
    const auto gated = carver.Take<bf16, 2>({kMost, features / 2});
    gpu.FillRandom({w.data, 1, 0, width, 0, 1e-6f});
    gpu.FillRandom({x, 2, 0, width, 0, 1e-4f});
    Tensor<bf16, 2> all({kMost, features}), some({kMost, features});
    Tensor<bf16, 2> all_gated({kMost, features / 2}), some_gated({kMost, features / 2});
    for (const int64_t rows : {64, 1, 2, 3, 8, 9, 16, 17, 32, 33}) {
      SCOPED_TRACE(::testing::Message() << rows << " x " << features << " x " << width);
      GemmArgs args{.x = x.Slice(0, rows), .w = &w, .out = out.Slice(0, rows), .decode = true};
      gpu.Gemm(args);
      gpu.Download((rows == kMost ? all : some).data(), out.data, args.out.bytes());
      args.gated = gated.Slice(0, rows);
      gpu.Gemm(args);
      gpu.Download((rows == kMost ? all_gated : some_gated).data(), gated.data, args.gated.bytes());
      gpu.Wait();
      if (rows == kMost) continue;
      EXPECT_TRUE(Same(some.view().Slice(0, rows), all.view().Slice(0, rows)));
      EXPECT_TRUE(Same(some_gated.view().Slice(0, rows), all_gated.view().Slice(0, rows)));
    }
  }
}

// A tile that a row may not see must change nothing of it, not even how its sums are rounded. Sharp
// scores and many values: what is looked for is a last bit now and then.
TEST_F(CudaOpsOnGpuTest, PromptRowsDoNotDependOnTheirChunk) {
  CudaOps& gpu = *SharedGpu();
  constexpr int32_t kTokens = 2500;
  const PagedKv kv(1, 40, 2, 128, 1);
  const auto q = Normal<bf16, 3>({kTokens, 16, 128}, 2);
  Tensor<bf16, 2> whole({kTokens, 2048}), parts({kTokens, 2048});
  const auto all = List<PrefillSegment>({{0, kTokens, 0, 0}});
  gpu.PrefillAttend({q, kv.view(), all, 0.5f, whole});
  for (const int32_t chunk : {1000, 511, 100, 37}) {
    for (int32_t first = 0; first < kTokens; first += chunk) {
      const auto segment =
          List<PrefillSegment>({{first, std::min(chunk, kTokens - first), 0, first}});
      gpu.PrefillAttend({q, kv.view(), segment, 0.5f, parts});
      gpu.Wait();
    }
    EXPECT_TRUE(Same(parts.view(), whole.view())) << "in chunks of " << chunk;
  }
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
