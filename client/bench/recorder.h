// SPDX-License-Identifier: Apache-2.0
// Recorder: what became of every request of a run, and the figures drawn from that. Needs no
// server. The definitions of all figures are in client/README.md.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "client/bench/distribution.h"
#include "client/bench/workload.h"
#include "engine/base/json.h"

namespace asynctls {

// One request, once it has ended. Times in seconds since the start of the run.
struct Record {
  Kind kind = Kind::kPlain;
  // stop, length, aborted; a status code in lower case; or broken_stream: ended OK without exactly
  // one Finished as the last message.
  std::string outcome;
  double sent = 0, ended = 0;
  std::optional<double> first_token;
  std::vector<float> gaps;     // between tokens: one fewer than tokens
  uint32_t prompt_tokens = 0;  // as the server says; 0 where it never said
  uint32_t cached_tokens = 0;
  uint64_t read_bytes = 0, dense_bytes = 0;  // of KV

  uint64_t tokens() const { return first_token.has_value() ? gaps.size() + 1 : 0; }
  bool finished() const { return outcome == "stop" || outcome == "length"; }
  // Whether the outcome is one that this kind of request is sent for.
  bool expected() const;
};

// Limits of a good request, in seconds; absent = none.
struct GoodputLimits {
  std::optional<double> ttft, tpot, e2e;

  // "ttft:MS,tpot:MS,e2e:MS", any of them. Errors: INVALID_ARGUMENT.
  static absl::StatusOr<GoodputLimits> Parse(const std::string& text);
  bool any() const { return ttft.has_value() || tpot.has_value() || e2e.has_value(); }
};

// Figures over time, in at most kBuckets buckets of equal width; the width doubles as the run goes
// on.
class TimeSeries {
 public:
  static constexpr size_t kBuckets = 240;

  void Add(const Record& record);
  // Lists of equal length: t (middle of each bucket), output_tokens_per_second,
  // requests_per_second, running, ttft_p50, ttft_p99, itl_p50, itl_p99 (null where nothing is).
  Json ToJson() const;

 private:
  struct Bucket {
    Distribution ttft{size_t{1} << 14}, itl{size_t{1} << 14};
    double busy = 0;  // request-seconds
    uint64_t tokens = 0, ended = 0;
  };
  Bucket& At(double seconds);
  void AddBusy(double from, double to);

  double width_ = 0.1;
  double end_ = 0;
  std::vector<Bucket> buckets_;
};

// Thread-safe.
class Recorder {
 public:
  explicit Recorder(GoodputLimits limits) : limits_(limits) {}

  void Add(const Record& record);

  uint64_t ended() const { return ended_; }
  uint64_t tokens() const { return tokens_; }
  // Plain, slow and deadline requests that ended as they should not.
  uint64_t failed() const { return failed_; }

  // {"outcomes", "failed", "unexpected", "latency", "throughput", "goodput", "series"} as in
  // client/README.md.
  Json ToJson() const;

 private:
  Json Outcomes() const;
  Json Throughput() const;
  Json Goodput() const;
  void AddLatencies(const Record& record);

  const GoodputLimits limits_;
  std::atomic<uint64_t> ended_{0}, tokens_{0}, failed_{0};

  mutable std::mutex mu_;  // guards what follows
  struct Count {
    uint64_t requests = 0;
    bool expected = true;
  };
  std::map<std::pair<Kind, std::string>, Count> outcomes_;
  Distribution ttft_, itl_, tpot_, e2e_;  // of plain requests that finished
  TimeSeries series_;
  double first_sent_ = 0, last_ended_ = 0;
  uint64_t finished_ = 0, prompt_tokens_ = 0, cached_tokens_ = 0;
  uint64_t read_bytes_ = 0, dense_bytes_ = 0;
  uint64_t plain_ = 0, good_ = 0;
};

}  // namespace asynctls
