// SPDX-License-Identifier: Apache-2.0
#include "client/bench/distribution.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace asynctls {
namespace {

constexpr double kQuantiles[] = {0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1};

// Nearest rank, by its definition.
double Reference(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  for (size_t i = 0; i < values.size(); ++i) {
    if (static_cast<double>(i + 1) >= q * static_cast<double>(values.size())) return values[i];
  }
  return values.back();
}

std::vector<double> LogNormal(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::lognormal_distribution<double> draw(std::log(0.02), 1.5);
  std::vector<double> out;
  for (size_t i = 0; i < count; ++i) out.push_back(i % 10 == 0 ? 0 : draw(random));
  return out;
}

TEST(DistributionTest, NothingIsZero) {
  const Distribution empty;
  EXPECT_EQ(empty.Quantile(0.5), 0);
  EXPECT_EQ(empty.mean(), 0);
  EXPECT_TRUE(empty.Histogram(10).empty());
}

TEST(DistributionTest, ExactQuantilesAreThoseOfTheSortedValues) {
  for (size_t count : {1u, 2u, 9u, 100u, 4321u}) {
    const std::vector<double> values = LogNormal(count, count);
    Distribution distribution;
    for (double value : values) distribution.Add(value);
    EXPECT_TRUE(distribution.exact());
    for (double q : kQuantiles) {
      EXPECT_FLOAT_EQ(distribution.Quantile(q), Reference(values, q)) << count << " " << q;
    }
    EXPECT_DOUBLE_EQ(distribution.max(), Reference(values, 1));
  }
}

TEST(DistributionTest, BucketsAreWithinOnePercent) {
  const std::vector<double> values = LogNormal(20000, 7);
  Distribution distribution(1000);
  double sum = 0;
  for (double value : values) {
    distribution.Add(value);
    sum += value;
  }
  EXPECT_FALSE(distribution.exact());
  EXPECT_EQ(distribution.count(), values.size());
  EXPECT_DOUBLE_EQ(distribution.mean(), sum / static_cast<double>(values.size()));
  for (double q : kQuantiles) {
    const double expected = Reference(values, q);
    EXPECT_NEAR(distribution.Quantile(q), expected, 0.01 * expected) << q;
  }
}

TEST(DistributionTest, MergedIsAsIfAddedToOne) {
  const std::vector<double> values = LogNormal(3000, 3);
  for (size_t limit : {10000u, 2000u, 100u}) {
    Distribution whole(limit), first(limit), second(limit);
    for (size_t i = 0; i < values.size(); ++i) {
      whole.Add(values[i]);
      (i % 3 == 0 ? first : second).Add(values[i]);
    }
    first.Merge(second);
    EXPECT_EQ(first.count(), whole.count());
    EXPECT_EQ(first.exact(), whole.exact());
    for (double q : kQuantiles) EXPECT_DOUBLE_EQ(first.Quantile(q), whole.Quantile(q)) << q;
  }
}

TEST(DistributionTest, HistogramHoldsEveryValueInItsBin) {
  for (size_t limit : {100000u, 100u}) {
    Distribution distribution(limit);
    const std::vector<double> values = LogNormal(5000, 11);
    for (double value : values) distribution.Add(value);
    const auto bins = distribution.Histogram(20);
    ASSERT_EQ(bins.size(), 20u);
    uint64_t sum = 0, zeros = 0;
    for (size_t i = 0; i < bins.size(); ++i) {
      sum += bins[i].count;
      EXPECT_NEAR(bins[i].low, bins[i > 0 ? i - 1 : i].high, i > 0 ? 1e-9 : 1);
    }
    for (double value : values) zeros += value == 0;
    EXPECT_EQ(sum, values.size());
    EXPECT_GE(bins[0].count, zeros);
    EXPECT_DOUBLE_EQ(bins.back().high, distribution.max());
  }
}

TEST(DistributionTest, OneValueIsOneBin) {
  Distribution distribution;
  distribution.Add(2);
  distribution.Add(2);
  const auto bins = distribution.Histogram(20);
  ASSERT_EQ(bins.size(), 1u);
  EXPECT_EQ(bins[0].count, 2u);
}

}  // namespace
}  // namespace asynctls
