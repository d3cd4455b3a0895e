// SPDX-License-Identifier: Apache-2.0
#include "client/bench/bench_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<BenchPlan> Plan(std::vector<std::string> args) {
  args.insert(args.begin(), "--target=h:1");
  const auto flags = Flags::Parse(BenchFlags(), args);
  return flags.ok() ? BenchPlanFrom(*flags) : flags.status();
}

TEST(BenchPlanTest, CarriesEveryFlag) {
  const auto plan = Plan({"--rate=12.5",
                          "--burstiness=0.5",
                          "--num-requests=7",
                          "--duration=3",
                          "--warmup=2",
                          "--connections=4",
                          "--prompt-tokens=10:20",
                          "--max-tokens=30",
                          "--shared-prefix-tokens=64",
                          "--shared-prefixes=2",
                          "--mode=lagged",
                          "--budget=256",
                          "--cancel-fraction=0.1",
                          "--slow-fraction=0.2",
                          "--slow-delay=5",
                          "--deadline-fraction=0.3",
                          "--deadline-seconds=0.25",
                          "--malformed-fraction=0.05",
                          "--timeout=9",
                          "--goodput=ttft:500",
                          "--seed=8",
                          "--json",
                          "--report=f.html"});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->run.target, "h:1");
  EXPECT_DOUBLE_EQ(plan->run.rate, 12.5);
  EXPECT_DOUBLE_EQ(plan->run.burstiness, 0.5);
  EXPECT_EQ(plan->run.num_requests, 7u);
  EXPECT_EQ(plan->run.duration, absl::Seconds(3));
  EXPECT_EQ(plan->run.warmup, 2u);
  EXPECT_EQ(plan->run.connections, 4);
  EXPECT_EQ(plan->run.slow_delay, absl::Milliseconds(5));
  EXPECT_EQ(plan->run.deadline, absl::Milliseconds(250));
  EXPECT_EQ(plan->run.timeout, absl::Seconds(9));
  EXPECT_EQ(plan->workload.prompt_tokens.max(), 20u);
  EXPECT_EQ(plan->workload.max_tokens.max(), 30u);
  EXPECT_EQ(plan->workload.shared_prefix_tokens, 64u);
  EXPECT_EQ(plan->workload.shared_prefixes, 2u);
  EXPECT_DOUBLE_EQ(plan->workload.malformed_fraction, 0.05);
  EXPECT_EQ(plan->workload.base.sparse().budget(), 256u);
  EXPECT_EQ(plan->workload.base.sparse().mode(), v1::ATTENTION_MODE_LAGGED);
  EXPECT_EQ(plan->workload.base.sampling().temperature(), 0);
  EXPECT_DOUBLE_EQ(*plan->goodput.ttft, 0.5);
  EXPECT_TRUE(plan->json);
  EXPECT_EQ(plan->report, "f.html");
  EXPECT_EQ(plan->flags["rate"], "12.5");
  EXPECT_EQ(plan->flags.size(), 24u);
}

TEST(BenchPlanTest, NamesTheFlagThatIsWrong) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> bad = {
      {{"--num-requests=1"}, "exactly one of --concurrency and --rate"},
      {{"--num-requests=1", "--rate=1", "--concurrency=1"}, "exactly one of"},
      {{"--rate=1"}, "--num-requests and --duration"},
      {{"--concurrency=1", "--burstiness=1", "--num-requests=1"}, "--burstiness goes with --rate"},
      {{"--concurrency=0", "--num-requests=1"}, "--concurrency: '0'"},
      {{"--rate=0", "--num-requests=1"}, "--rate: 0"},
      {{"--rate=1", "--duration=-1"}, "--duration: -1"},
      {{"--rate=1", "--num-requests=1", "--prompt-tokens=9:1"}, "--prompt-tokens: '9:1'"},
      {{"--rate=1", "--num-requests=1", "--max-tokens=0"}, "--max-tokens: '0'"},
      {{"--rate=1", "--num-requests=1", "--mode=fast"}, "--mode: 'fast'"},
      {{"--rate=1", "--num-requests=1", "--goodput=x:1"}, "--goodput: 'x:1'"},
      {{"--rate=1", "--num-requests=1", "--cancel-fraction=1.5"}, "--cancel-fraction: 1.5"},
      {{"--rate=1", "--num-requests=1", "--cancel-fraction=0.6", "--slow-fraction=0.6"}, "1.2"},
  };
  for (const auto& [args, message] : bad) {
    const auto plan = Plan(args);
    ASSERT_FALSE(plan.ok()) << message;
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr(message));
  }
}

}  // namespace
}  // namespace asynctls
