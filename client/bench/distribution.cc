// SPDX-License-Identifier: Apache-2.0
#include "client/bench/distribution.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace asynctls {
namespace {

// Bucket 0 holds what is below kLeast, bucket i > 0 what is from kLeast * 1.01^(i - 1) on.
constexpr double kLeast = 1e-9;
constexpr size_t kBuckets = 4000;  // up to 1e-9 * 1.01^3999 = 1.9e8
const double kLogRatio = std::log(1.01);

size_t BucketOf(double value) {
  if (value < kLeast) return 0;
  const double index = 1 + std::floor(std::log(value / kLeast) / kLogRatio);
  return std::min(static_cast<size_t>(index), kBuckets - 1);
}

double MiddleOf(size_t bucket) {
  if (bucket == 0) return 0;
  return kLeast * std::exp((static_cast<double>(bucket) - 0.5) * kLogRatio);
}

}  // namespace

void Distribution::Add(double value) {
  assert(value >= 0);
  sum_ += value;
  max_ = std::max(max_, value);
  ++count_;
  if (!exact()) return AddBucket(value, 1);
  values_.push_back(static_cast<float>(value));
  sorted_ = false;
  if (values_.size() > exact_limit_) LeaveExact();
}

void Distribution::Merge(const Distribution& other) {
  count_ += other.count_;
  sum_ += other.sum_;
  max_ = std::max(max_, other.max_);
  if (exact() && (!other.exact() || values_.size() + other.values_.size() > exact_limit_)) {
    LeaveExact();
  }
  if (exact()) {
    values_.insert(values_.end(), other.values_.begin(), other.values_.end());
    sorted_ = false;
    return;
  }
  for (float value : other.values_) AddBucket(value, 1);
  for (size_t i = 0; i < other.buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
}

double Distribution::Quantile(double q) const {
  assert(q >= 0 && q <= 1);
  if (count_ == 0) return 0;
  const double rank = std::ceil(q * static_cast<double>(count_));
  const uint64_t nth = std::max<uint64_t>(1, static_cast<uint64_t>(rank));
  if (exact()) {
    if (!sorted_) std::sort(values_.begin(), values_.end());
    sorted_ = true;
    return values_[nth - 1];
  }
  uint64_t seen = 0;
  size_t bucket = 0;
  while (bucket < kBuckets && (seen += buckets_[bucket]) < nth) ++bucket;
  return std::min(MiddleOf(bucket), max_);
}

std::vector<Distribution::Bin> Distribution::Histogram(int bins) const {
  assert(bins > 0);
  std::vector<Bin> out;
  if (count_ == 0) return out;
  const double low = Least();
  if (low >= max_) return {{low, max_, count_}};
  const double step = std::log(max_ / low) / bins;
  for (int i = 0; i < bins; ++i) {
    out.push_back({low * std::exp(step * i), low * std::exp(step * (i + 1)), 0});
  }
  out.back().high = max_;
  const auto add = [&](double value, uint64_t count) {
    const double index = value > low ? std::floor(std::log(value / low) / step) : 0;
    out[std::min<size_t>(static_cast<size_t>(index), out.size() - 1)].count += count;
  };
  for (float value : values_) add(value, 1);
  for (size_t i = 0; i < buckets_.size(); ++i) {
    if (buckets_[i] > 0) add(MiddleOf(i), buckets_[i]);
  }
  return out;
}

void Distribution::AddBucket(double value, uint64_t count) { buckets_[BucketOf(value)] += count; }

void Distribution::LeaveExact() {
  buckets_.resize(kBuckets);
  for (float value : values_) AddBucket(value, 1);
  values_ = {};
}

double Distribution::Least() const {
  double least = max_;
  for (float value : values_) {
    if (value > 0) least = std::min<double>(least, value);
  }
  for (size_t i = 1; i < buckets_.size(); ++i) {
    if (buckets_[i] > 0) return std::min(MiddleOf(i), max_);
  }
  return least;
}

}  // namespace asynctls
