// SPDX-License-Identifier: Apache-2.0
#include "engine/base/host_port.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls {
namespace {

using ::testing::HasSubstr;

TEST(ParseHostPortTest, SplitsAtTheLastColon) {
  using Pair = std::pair<std::string, int>;
  EXPECT_EQ(*ParseHostPort("listen", "0.0.0.0:50051"), Pair("0.0.0.0", 50051));
  EXPECT_EQ(*ParseHostPort("listen", "[::1]:0"), Pair("[::1]", 0));
  EXPECT_EQ(*ParseHostPort("listen", "localhost:65535"), Pair("localhost", 65535));
}

TEST(ParseHostPortTest, OtherTextIsAnErrorThatNamesTheField) {
  for (const char* text :
       {"", ":", ":1", "host", "host:", "host:x", "host:-1", "host:65536", "::1:80"}) {
    const auto parsed = ParseHostPort("metrics_listen", text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("metrics_listen")) << text;
  }
}

TEST(WithPortTest, KeepsTheHost) {
  EXPECT_EQ(WithPort("0.0.0.0:0", 8000), "0.0.0.0:8000");
  EXPECT_EQ(WithPort("[::1]:0", 8000), "[::1]:8000");
}

}  // namespace
}  // namespace asynctls
