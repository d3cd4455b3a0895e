// SPDX-License-Identifier: Apache-2.0
#include "client/bench/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

namespace asynctls {
namespace {

using ::testing::HasSubstr;

Workload Make(const WorkloadOptions& options) {
  absl::StatusOr<Workload> workload = Workload::Make(options);
  EXPECT_TRUE(workload.ok()) << workload.status();
  return *std::move(workload);
}

WorkloadOptions Options() {
  WorkloadOptions options;
  options.vocab = 1000;
  options.seed = 5;
  return options;
}

TEST(LengthSpecTest, SamplesWhatItSays) {
  Random random(1);
  EXPECT_EQ(LengthSpec::Parse("77")->Sample(random), 77u);
  const LengthSpec uniform = *LengthSpec::Parse("10:19");
  std::set<uint32_t> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(uniform.Sample(random));
  EXPECT_EQ(seen.size(), 10u);
  EXPECT_EQ(*seen.begin(), 10u);
  EXPECT_EQ(*seen.rbegin(), 19u);
  const LengthSpec skewed = *LengthSpec::Parse("lognormal:100:0.5:300");
  std::vector<uint32_t> lengths;
  for (int i = 0; i < 4001; ++i) lengths.push_back(skewed.Sample(random));
  std::sort(lengths.begin(), lengths.end());
  EXPECT_NEAR(lengths[2000], 100, 5);
  EXPECT_EQ(lengths.back(), 300u);
  EXPECT_NEAR(lengths[3365], 100 * std::exp(0.5), 10);  // one sigma up
}

TEST(LengthSpecTest, RefusesWhatIsNone) {
  for (const char* bad : {"",
                          "0",
                          "x",
                          "5:4",
                          "0:4",
                          "1:2:3",
                          "99999999",
                          "lognormal:1:0:5",
                          "lognormal:1:x:5",
                          "normal:1:1:5"}) {
    EXPECT_THAT(std::string(LengthSpec::Parse(bad).status().message()), HasSubstr("is not N"))
        << bad;
  }
}

TEST(WorkloadTest, TheSeedAndTheIndexDecideARequest) {
  WorkloadOptions options = Options();
  options.prompt_tokens = *LengthSpec::Parse("5:50");
  options.cancel_fraction = 0.5;
  const Workload one = Make(options), same = Make(options);
  options.seed = 6;
  const Workload other = Make(options);
  for (uint64_t i : {3u, 1u, 2u}) {
    const PlannedRequest planned = one.Plan(i);
    EXPECT_EQ(planned.request.SerializeAsString(), same.Plan(i).request.SerializeAsString());
    EXPECT_EQ(planned.kind, same.Plan(i).kind);
    EXPECT_NE(planned.request.SerializeAsString(), other.Plan(i).request.SerializeAsString());
    EXPECT_NE(planned.request.SerializeAsString(), one.Plan(i + 1).request.SerializeAsString());
    EXPECT_NE(planned.request.SerializeAsString(), one.PlanWarmup(i).request.SerializeAsString());
    EXPECT_EQ(one.PlanWarmup(i).kind, Kind::kPlain);
  }
}

TEST(WorkloadTest, RequestsHaveTheAskedShape) {
  WorkloadOptions options = Options();
  options.prompt_tokens = *LengthSpec::Parse("20:30");
  options.max_tokens = *LengthSpec::Parse("7");
  options.shared_prefix_tokens = 16;
  options.shared_prefixes = 3;
  options.base.mutable_sparse()->set_budget(256);
  const Workload workload = Make(options);
  std::map<std::vector<uint32_t>, int> prefixes;
  for (uint64_t i = 0; i < 300; ++i) {
    const v1::GenerateRequest request = workload.Plan(i).request;
    const auto& ids = request.token_ids().ids();
    EXPECT_GE(ids.size(), 36);
    EXPECT_LE(ids.size(), 46);
    EXPECT_TRUE(std::all_of(ids.begin(), ids.end(), [](uint32_t id) { return id < 1000; }));
    ++prefixes[{ids.begin(), ids.begin() + 16}];
    EXPECT_EQ(request.stopping().max_tokens(), 7u);
    EXPECT_TRUE(request.stopping().ignore_eos());
    EXPECT_EQ(request.sparse().budget(), 256u);
  }
  EXPECT_EQ(prefixes.size(), 3u);
  for (const auto& [prefix, count] : prefixes) EXPECT_GT(count, 60);
}

TEST(WorkloadTest, KindsComeInTheirShares) {
  WorkloadOptions options = Options();
  options.prompt_tokens = *LengthSpec::Parse("1");
  options.max_tokens = *LengthSpec::Parse("10");
  options.cancel_fraction = 0.2;
  options.slow_fraction = 0.1;
  options.deadline_fraction = 0.05;
  options.malformed_fraction = 0.15;
  const Workload workload = Make(options);
  std::map<Kind, int> counts;
  std::set<uint32_t> cancels;
  for (uint64_t i = 0; i < 10000; ++i) {
    const PlannedRequest planned = workload.Plan(i);
    ++counts[planned.kind];
    if (planned.kind == Kind::kCancel) cancels.insert(planned.cancel_after);
  }
  // Four standard deviations of a binomial count are at most 200.
  EXPECT_NEAR(counts[Kind::kCancel], 2000, 160);
  EXPECT_NEAR(counts[Kind::kSlow], 1000, 120);
  EXPECT_NEAR(counts[Kind::kDeadline], 500, 88);
  EXPECT_NEAR(counts[Kind::kMalformed], 1500, 143);
  EXPECT_NEAR(counts[Kind::kPlain], 5000, 200);
  EXPECT_EQ(cancels.size(), 10u);  // 0 to 9
}

TEST(WorkloadTest, RefusesImpossibleOptions) {
  WorkloadOptions options = Options();
  options.cancel_fraction = options.slow_fraction = 0.6;
  EXPECT_THAT(std::string(Workload::Make(options).status().message()), HasSubstr("1.2"));
  options = Options();
  options.vocab = 0;
  EXPECT_FALSE(Workload::Make(options).ok());
}

TEST(BreakTest, EveryWayChangesTheRequest) {
  WorkloadOptions options = Options();
  const v1::GenerateRequest good = Make(options).Plan(0).request;
  std::set<std::string> seen = {good.SerializeAsString()};
  for (uint32_t i = 0; i < kMalformations; ++i) {
    v1::GenerateRequest bad = good;
    Break(i, bad);
    EXPECT_TRUE(seen.insert(bad.SerializeAsString()).second) << i;
  }
}

TEST(ArrivalsTest, GapsHaveTheirMeanAndSpread) {
  constexpr int kCount = 20000;
  for (double burstiness : {0.25, 1.0, 4.0}) {
    Arrivals arrivals(50, burstiness, 9);
    double last = 0, sum = 0, squares = 0;
    for (int i = 0; i < kCount; ++i) {
      const double now = arrivals.Next();
      ASSERT_GE(now, last);
      sum += now - last;
      squares += (now - last) * (now - last);
      last = now;
    }
    const double mean = sum / kCount;
    const double deviation = std::sqrt(squares / kCount - mean * mean);
    EXPECT_NEAR(mean, 1 / 50.0, 0.06 / 50) << burstiness;
    EXPECT_NEAR(deviation / mean, 1 / std::sqrt(burstiness), 0.06 / std::sqrt(burstiness));
  }
}

}  // namespace
}  // namespace asynctls
