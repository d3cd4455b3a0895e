// SPDX-License-Identifier: Apache-2.0
#include "client/bench/workload.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace asynctls {
namespace {

// Streams of random numbers that must not meet.
constexpr uint64_t kRequestStream = 1, kWarmupStream = 2, kPrefixStream = 3, kArrivalStream = 4;
constexpr uint32_t kMaxLength = 1u << 24;

Random RandomOf(uint64_t seed, uint64_t stream, uint64_t index) {
  std::seed_seq sequence{static_cast<uint32_t>(seed),
                         static_cast<uint32_t>(seed >> 32),
                         static_cast<uint32_t>(stream),
                         static_cast<uint32_t>(index),
                         static_cast<uint32_t>(index >> 32)};
  return Random(sequence);
}

uint32_t Below(Random& random, uint32_t n) {
  return std::uniform_int_distribution<uint32_t>(0, n - 1)(random);
}

void AppendIds(Random& random,
               uint32_t count,
               uint32_t vocab,
               google::protobuf::RepeatedField<uint32_t>& ids) {
  ids.Reserve(ids.size() + static_cast<int>(count));
  for (uint32_t i = 0; i < count; ++i) ids.AddAlreadyReserved(Below(random, vocab));
}

bool ParseLength(const std::string& text, uint32_t& out) {
  return absl::SimpleAtoi(text, &out) && out >= 1 && out <= kMaxLength;
}

}  // namespace

absl::StatusOr<LengthSpec> LengthSpec::Parse(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  uint32_t low, max;
  double sigma;
  if (parts.size() == 1 && ParseLength(parts[0], low)) return LengthSpec(low, low, 0);
  if (parts.size() == 2 && ParseLength(parts[0], low) && ParseLength(parts[1], max) && low <= max) {
    return LengthSpec(low, max, 0);
  }
  if (parts.size() == 4 && parts[0] == "lognormal" && ParseLength(parts[1], low) &&
      absl::SimpleAtod(parts[2], &sigma) && sigma > 0 && sigma <= 10 &&
      ParseLength(parts[3], max)) {
    return LengthSpec(low, max, sigma);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'",
                   text,
                   "' is not N, MIN:MAX or lognormal:MEDIAN:SIGMA:MAX with lengths from 1 to ",
                   kMaxLength));
}

uint32_t LengthSpec::Sample(Random& random) const {
  if (sigma_ == 0) return std::uniform_int_distribution<uint32_t>(low_, max_)(random);
  const double value = std::lognormal_distribution<double>(std::log(low_), sigma_)(random);
  return static_cast<uint32_t>(std::clamp(std::round(value), 1.0, static_cast<double>(max_)));
}

std::string KindName(Kind kind) {
  switch (kind) {
    case Kind::kPlain:
      return "plain";
    case Kind::kCancel:
      return "cancel";
    case Kind::kSlow:
      return "slow";
    case Kind::kDeadline:
      return "deadline";
    case Kind::kMalformed:
      return "malformed";
  }
  return "";
}

absl::StatusOr<Workload> Workload::Make(WorkloadOptions options) {
  const double sum = options.cancel_fraction + options.slow_fraction + options.deadline_fraction +
                     options.malformed_fraction;
  if (sum > 1 + 1e-9) {
    return absl::InvalidArgumentError(
        absl::StrCat("the fractions of cancelled, slow, deadline and malformed requests add up to ",
                     sum,
                     ", more than 1"));
  }
  if (options.vocab == 0) return absl::InvalidArgumentError("the model has no vocabulary");
  return Workload(std::move(options));
}

Workload::Workload(WorkloadOptions options) : options_(std::move(options)) {
  prefixes_.resize(options_.shared_prefix_tokens > 0 ? options_.shared_prefixes : 0);
  for (size_t p = 0; p < prefixes_.size(); ++p) {
    Random random = RandomOf(options_.seed, kPrefixStream, p);
    for (uint32_t i = 0; i < options_.shared_prefix_tokens; ++i) {
      prefixes_[p].push_back(Below(random, options_.vocab));
    }
  }
}

Kind Workload::DrawKind(Random& random) const {
  double x = std::uniform_real_distribution<double>(0, 1)(random);
  if ((x -= options_.cancel_fraction) < 0) return Kind::kCancel;
  if ((x -= options_.slow_fraction) < 0) return Kind::kSlow;
  if ((x -= options_.deadline_fraction) < 0) return Kind::kDeadline;
  if ((x -= options_.malformed_fraction) < 0) return Kind::kMalformed;
  return Kind::kPlain;
}

PlannedRequest Workload::Plan(uint64_t index) const {
  Random random = RandomOf(options_.seed, kRequestStream, index);
  const Kind kind = DrawKind(random);
  return Fill(random, kind);
}

PlannedRequest Workload::PlanWarmup(uint64_t index) const {
  Random random = RandomOf(options_.seed, kWarmupStream, index);
  return Fill(random, Kind::kPlain);
}

PlannedRequest Workload::Fill(Random& random, Kind kind) const {
  PlannedRequest planned{kind, options_.base, 0};
  auto& ids = *planned.request.mutable_token_ids()->mutable_ids();
  if (!prefixes_.empty()) {
    const auto& prefix = prefixes_[Below(random, static_cast<uint32_t>(prefixes_.size()))];
    ids.Add(prefix.begin(), prefix.end());
  }
  AppendIds(random, options_.prompt_tokens.Sample(random), options_.vocab, ids);
  const uint32_t max_tokens = options_.max_tokens.Sample(random);
  planned.request.mutable_stopping()->set_max_tokens(max_tokens);
  planned.request.mutable_stopping()->set_ignore_eos(true);
  planned.request.mutable_response()->set_token_ids(true);  // tokens are counted by their ids
  if (kind == Kind::kCancel) planned.cancel_after = Below(random, max_tokens);
  if (kind == Kind::kMalformed) Break(Below(random, kMalformations), planned.request);
  return planned;
}

void Break(uint32_t which, v1::GenerateRequest& request) {
  assert(which < kMalformations);
  switch (which) {
    case 0:
      return request.clear_prompt();
    case 1:
      return request.mutable_token_ids()->clear_ids();
    case 2:
      return request.mutable_token_ids()->add_ids(UINT32_MAX);
    case 3:
      return request.mutable_stopping()->set_max_tokens(0);
    case 4:
      return request.mutable_stopping()->add_stop("");
    case 5:
      return request.mutable_sampling()->set_temperature(-1);
    case 6:
      return request.mutable_sampling()->set_top_p(std::numeric_limits<float>::quiet_NaN());
    default:
      return request.set_request_id(std::string(100000, 'x'));
  }
}

Arrivals::Arrivals(double rate, double burstiness, uint64_t seed)
    : random_(RandomOf(seed, kArrivalStream, 0)), gap_(burstiness, 1 / (rate * burstiness)) {
  assert(rate > 0 && burstiness > 0);
}

double Arrivals::Next() { return now_ += gap_(random_); }

}  // namespace asynctls
