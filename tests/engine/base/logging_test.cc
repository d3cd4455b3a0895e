// SPDX-License-Identifier: Apache-2.0
#include "engine/base/logging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls {
namespace {

TEST(Logging, SetsTheLevel) {
  ASSERT_TRUE(InitLogging("warn").ok());
  EXPECT_FALSE(spdlog::should_log(spdlog::level::info));
  EXPECT_TRUE(spdlog::should_log(spdlog::level::warn));
}

TEST(Logging, UnknownLevelIsAnErrorThatNamesIt) {
  const absl::Status status = InitLogging("loud");
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("loud"));
}

}  // namespace
}  // namespace asynctls
