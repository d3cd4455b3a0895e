// SPDX-License-Identifier: Apache-2.0
// On any machine, in any build: what is missing is said. With a GPU, a rank starts on it.
#include "engine/worker/make_cuda_worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/rank_driver.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

using ::testing::HasSubstr;

TEST(MakeCudaWorkerTest, SaysWhatIsMissing) {
  const absl::Status status = CheckGpus(GpuCount() + 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("device is cuda"));
}

TEST(MakeCudaWorkerTest, StartsOnAGpuAndTakesTheMemoryThatIsFree) {
  if (GpuCount() == 0) GTEST_SKIP() << "no GPU on this machine, or a build without CUDA";
  const TempDir dir;
  TinyModel().Write(dir.path());
  v1::InitRequest request = InitFor(dir.path());
  request.set_dense_layers(2);
  request.set_kv_bytes(0);
  const std::unique_ptr<Worker> worker = MakeCudaWorker();
  const absl::StatusOr<v1::InitReply> reply = worker->Init(request);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_THAT(reply->device(), HasSubstr("multiprocessors"));
  EXPECT_GT(reply->blocks(), 10'000u);
}

}  // namespace
}  // namespace asynctls
