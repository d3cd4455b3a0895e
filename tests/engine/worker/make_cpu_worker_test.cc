// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/make_cpu_worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/testing/rank_driver.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace asynctls {
namespace {

TEST(MakeCpuWorkerTest, CalibrationWritesTheFileThatInitReads) {
  const TempDir dir;
  TinyModel().Write(dir.path());
  std::vector<uint32_t> tokens;
  for (uint32_t i = 0; i < 1500; ++i) tokens.push_back((i * 31 + i * i) % 67);
  int64_t last = 0;
  const absl::Status status = CalibrateCpu({.model_dir = dir.path(),
                                            .tokens = tokens,
                                            .source = "test",
                                            .out_file = {},
                                            .threads = 1,
                                            .progress = [&](int64_t done, int64_t total) {
                                              EXPECT_GT(done, last);
                                              EXPECT_EQ(total, 1500);
                                              last = done;
                                            }});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(last, 1500);
  v1::InitRequest request = InitFor(dir.path());
  request.set_threads(1);
  const absl::StatusOr<v1::InitReply> reply = MakeCpuWorker()->Init(request);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->key_codes(), dir.File("key_codes.safetensors"));
}

TEST(MakeCpuWorkerTest, CalibrationNamesWhatIsWrong) {
  CpuCalibration calibration;
  calibration.model_dir = "/no/such";
  EXPECT_EQ(CalibrateCpu(calibration).code(), absl::StatusCode::kInvalidArgument);
  const std::vector<uint32_t> tokens = {1, 2, 3};
  calibration.tokens = tokens;
  EXPECT_EQ(CalibrateCpu(calibration).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace asynctls
