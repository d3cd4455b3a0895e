// SPDX-License-Identifier: Apache-2.0
// Distribution: quantiles of many non-negative values. Exact (sorted 4-byte floats) up to a number
// of values, then counts in buckets 1 % wide, each value known to 0.5 %. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace asynctls {

class Distribution {
 public:
  static constexpr size_t kExactLimit = size_t{1} << 22;  // 16 MiB of floats

  explicit Distribution(size_t exact_limit = kExactLimit) : exact_limit_(exact_limit) {}

  // Requires: value >= 0.
  void Add(double value);
  void Merge(const Distribution& other);

  uint64_t count() const { return count_; }
  double mean() const { return count_ > 0 ? sum_ / static_cast<double>(count_) : 0; }
  double max() const { return max_; }
  bool exact() const { return buckets_.empty(); }

  // Nearest rank: the smallest value that at least q * count values do not exceed; 0 without any.
  // Requires: 0 <= q <= 1.
  double Quantile(double q) const;

  struct Bin {
    double low, high;  // low <= value < high; the last bin has its high too
    uint64_t count;
  };
  // At most `bins` bins of equal ratio from the least positive value to the largest one. Values of
  // 0 are in the first bin.
  std::vector<Bin> Histogram(int bins) const;

 private:
  void AddBucket(double value, uint64_t count);
  void LeaveExact();
  double Least() const;  // positive value

  size_t exact_limit_;
  uint64_t count_ = 0;
  double sum_ = 0, max_ = 0;
  mutable std::vector<float> values_;  // sorted on demand; empty once not exact
  mutable bool sorted_ = true;
  std::vector<uint64_t> buckets_;  // by BucketOf; empty while exact
};

}  // namespace asynctls
