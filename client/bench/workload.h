// SPDX-License-Identifier: Apache-2.0
// What `asynctls bench` sends: lengths, prompts, kinds of request and times of arrival, all from
// one seed. Needs no server. Everything is const and thread-safe but Arrivals.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "asynctls/v1/generation.pb.h"

namespace asynctls {

using Random = std::mt19937_64;

// A distribution of lengths, at least 1: "N"; "MIN:MAX", both included, each as likely;
// "lognormal:MEDIAN:SIGMA:MAX", values above MAX become MAX.
class LengthSpec {
 public:
  // Errors: INVALID_ARGUMENT saying what is wrong with `text`.
  static absl::StatusOr<LengthSpec> Parse(const std::string& text);
  static LengthSpec Fixed(uint32_t length) { return LengthSpec(length, length, 0); }

  uint32_t Sample(Random& random) const;
  uint32_t max() const { return max_; }

 private:
  LengthSpec(uint32_t low, uint32_t max, double sigma) : low_(low), max_(max), sigma_(sigma) {}

  uint32_t low_;  // the least, or the median of a log-normal
  uint32_t max_;
  double sigma_;  // 0: uniform
};

// What a request is there for. Exactly one each.
enum class Kind {
  kPlain,      // is measured
  kCancel,     // is cancelled after some tokens
  kSlow,       // its replies are read with a delay after each
  kDeadline,   // has a short deadline
  kMalformed,  // must be refused
};
constexpr Kind kKinds[] = {
    Kind::kPlain, Kind::kCancel, Kind::kSlow, Kind::kDeadline, Kind::kMalformed};
std::string KindName(Kind kind);  // "plain", "cancel", ...

struct WorkloadOptions {
  LengthSpec prompt_tokens = LengthSpec::Fixed(128);
  LengthSpec max_tokens = LengthSpec::Fixed(64);
  uint32_t shared_prefix_tokens = 0;  // in front of the prompt's own tokens
  uint32_t shared_prefixes = 1;       // how many different ones, each as likely
  uint32_t vocab = 0;                 // ids are below this
  double cancel_fraction = 0, slow_fraction = 0, deadline_fraction = 0, malformed_fraction = 0;
  v1::GenerateRequest base;  // the other fields: sparse attention, sampling
  uint64_t seed = 0;
};

struct PlannedRequest {
  Kind kind = Kind::kPlain;
  v1::GenerateRequest request;
  uint32_t cancel_after = 0;  // kCancel: tokens seen before; 0 = as soon as it is sent
};

class Workload {
 public:
  // Errors: INVALID_ARGUMENT for fractions whose sum is above 1 or no vocabulary.
  static absl::StatusOr<Workload> Make(WorkloadOptions options);

  // Request number `index`: depends on the options and the index alone. Token ids, end tokens
  // ignored, so that lengths are as asked.
  PlannedRequest Plan(uint64_t index) const;
  // The same, but always plain, and different from every Plan.
  PlannedRequest PlanWarmup(uint64_t index) const;

 private:
  explicit Workload(WorkloadOptions options);
  PlannedRequest Fill(Random& random, Kind kind) const;
  Kind DrawKind(Random& random) const;

  WorkloadOptions options_;
  std::vector<std::vector<uint32_t>> prefixes_;
};

// How many ways there are to break a request; Break(i) for i in [0, kMalformations).
constexpr uint32_t kMalformations = 8;
// Makes the request one that a server must refuse with INVALID_ARGUMENT.
void Break(uint32_t which, v1::GenerateRequest& request);

// Times of arrival: gaps are gamma distributed with mean 1 / rate and shape `burstiness`: 1 is a
// Poisson process, below 1 comes in bursts, above 1 is more even.
class Arrivals {
 public:
  // Requires: rate > 0, burstiness > 0.
  Arrivals(double rate, double burstiness, uint64_t seed);
  double Next();  // seconds since the start

 private:
  Random random_;
  std::gamma_distribution<double> gap_;
  double now_ = 0;
};

}  // namespace asynctls
