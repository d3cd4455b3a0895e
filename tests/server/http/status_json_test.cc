// SPDX-License-Identifier: Apache-2.0
#include "server/http/status_json.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/time/clock.h"
#include "engine/base/json.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

TEST(StatusJsonTest, HeatIsCutIntoCells) {
  EXPECT_EQ(HeatCells(""), "");
  EXPECT_EQ(HeatCells("abc"), "abc");
  EXPECT_EQ(HeatCells(std::string(kMaxHeatCells, 'x')).size(), kMaxHeatCells);
  std::string heat(kMaxHeatCells * 3 - 1, '\0');
  heat[4] = 7;
  heat[5] = '\xff';  // the hottest of its cell, as a number without a sign
  heat.back() = 9;
  const std::string cells = HeatCells(heat);
  ASSERT_EQ(cells.size(), kMaxHeatCells);
  EXPECT_EQ(cells[1], '\xff');
  EXPECT_EQ(cells.back(), 9);
  EXPECT_EQ(cells[2], 0);
}

TEST(StatusJsonTest, WhileLoadingOnlyHealth) {
  TestServer::Options options = TestServer::Defaults();
  options.open = false;
  TestServer server(options);
  Health health;
  health.reason = "the model is loading";
  const Json json = Json::parse(StatusJsonText(server.server().frontend(), health, absl::Now()));
  EXPECT_EQ(json["health"]["ready"], false);
  EXPECT_EQ(json["health"]["reason"], "the model is loading");
  EXPECT_FALSE(json.contains("load"));
}

TEST(StatusJsonTest, NumbersOfAnIdleServer) {
  TestServer server;
  Health health;
  health.ready = true;
  const Json json = Json::parse(StatusJsonText(server.server().frontend(), health, absl::Now()));
  EXPECT_EQ(json["version"], ServerVersion());
  EXPECT_EQ(json["model"]["name"], "fake");
  EXPECT_EQ(json["load"]["running"], 0);
  EXPECT_EQ(json["load"]["max_running"], 32);
  EXPECT_EQ(json["kv"]["total"], 1024);
  EXPECT_EQ(json["phases"].size(), kStepPhases.size());
  EXPECT_EQ(json["requests"]["total"], 0);
  EXPECT_TRUE(json["requests"]["list"].empty());
}

}  // namespace
}  // namespace asynctls::testing
