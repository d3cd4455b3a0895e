// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/call_info.h"

#include <gtest/gtest.h>

namespace asynctls {
namespace {

TEST(TraceIdTest, IsTheSecondFieldOfAValidHeader) {
  const std::string id = "4bf92f3577b34da6a3ce929d0e0e4736";
  EXPECT_EQ(TraceId("00-" + id + "-00f067aa0ba902b7-01"), id);
  EXPECT_EQ(TraceId("01-" + id + "-00f067aa0ba902b7-01-later-fields"), id);
}

TEST(TraceIdTest, AnythingElseHasNone) {
  for (const std::string header :
       {"",
        "00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",         // too short
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",      // upper case
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",      // no trace
        "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",      // separator
        "00-4bf92f3577b34da6a3ce929d0e0e47\n6-00f067aa0ba902b7-01"}) {  // would break a log line
    EXPECT_EQ(TraceId(header), "") << header;
  }
}

TEST(ProtocolTest, EachHasItsName) {
  EXPECT_STREQ(ProtocolName(Protocol::kGrpc), "grpc");
  EXPECT_STREQ(ProtocolName(Protocol::kVllm), "vllm");
  EXPECT_STREQ(ProtocolName(Protocol::kKserve), "kserve");
  EXPECT_STREQ(ProtocolName(Protocol::kOpenAi), "openai");
}

}  // namespace
}  // namespace asynctls
