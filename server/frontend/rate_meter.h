// SPDX-License-Identifier: Apache-2.0
// RateMeter: how fast a counter has grown over the last ten seconds. One thread at a time.
#pragma once

#include <cstdint>
#include <deque>

#include "absl/time/time.h"

namespace asynctls {

class RateMeter {
 public:
  // The counter's value at `now`; times do not go back.
  void Sample(absl::Time now, uint64_t total) {
    samples_.push_back({now, total});
    while (samples_.size() > 2 && samples_[1].at <= now - kWindow) samples_.pop_front();
  }

  // Per second; 0 before the second sample.
  double PerSecond() const {
    if (samples_.size() < 2) return 0;
    const double seconds = absl::ToDoubleSeconds(samples_.back().at - samples_.front().at);
    return seconds > 0 ? (samples_.back().total - samples_.front().total) / seconds : 0;
  }

 private:
  static constexpr absl::Duration kWindow = absl::Seconds(10);
  struct Sampled {
    absl::Time at;
    uint64_t total;
  };
  std::deque<Sampled> samples_;
};

}  // namespace asynctls
