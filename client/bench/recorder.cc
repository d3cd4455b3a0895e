// SPDX-License-Identifier: Apache-2.0
#include "client/bench/recorder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace asynctls {
namespace {

constexpr int kHistogramBins = 40;

// (last token - first token) / (tokens - 1); requests of two tokens and more have one.
std::optional<double> Tpot(const Record& record) {
  if (record.gaps.empty()) return std::nullopt;
  return std::accumulate(record.gaps.begin(), record.gaps.end(), 0.0) /
         static_cast<double>(record.gaps.size());
}

Json LatencyJson(const Distribution& values) {
  Json json = {{"count", values.count()},
               {"mean", values.mean()},
               {"p50", values.Quantile(0.5)},
               {"p90", values.Quantile(0.9)},
               {"p99", values.Quantile(0.99)},
               {"p99.9", values.Quantile(0.999)},
               {"max", values.max()},
               {"exact", values.exact()},
               {"cdf", Json::array()},
               {"histogram", Json::array()}};
  if (values.count() == 0) return json;
  for (int i = 0; i <= 100; ++i) json["cdf"].push_back({values.Quantile(i / 100.0), i / 100.0});
  json["cdf"].insert(json["cdf"].end() - 1, Json::array({values.Quantile(0.999), 0.999}));
  for (const Distribution::Bin& bin : values.Histogram(kHistogramBins)) {
    json["histogram"].push_back({bin.low, bin.high, bin.count});
  }
  return json;
}

Json OrNull(const Distribution& values, double q) {
  return values.count() > 0 ? Json(values.Quantile(q)) : Json();
}

double Per(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

}  // namespace

bool Record::expected() const {
  switch (kind) {
    case Kind::kPlain:
    case Kind::kSlow:
      return finished();
    case Kind::kCancel:  // its end may come before the cancel
      return finished() || outcome == "cancelled";
    case Kind::kDeadline:
      return finished() || outcome == "deadline_exceeded";
    case Kind::kMalformed:
      return outcome == "invalid_argument";
  }
  return false;
}

absl::StatusOr<GoodputLimits> GoodputLimits::Parse(const std::string& text) {
  GoodputLimits limits;
  for (const std::string& item : std::vector<std::string>(absl::StrSplit(text, ','))) {
    const std::vector<std::string> pair = absl::StrSplit(item, ':');
    std::optional<double>* limit = pair[0] == "ttft"   ? &limits.ttft
                                   : pair[0] == "tpot" ? &limits.tpot
                                   : pair[0] == "e2e"  ? &limits.e2e
                                                       : nullptr;
    double ms;
    if (limit == nullptr || pair.size() != 2 || !absl::SimpleAtod(pair[1], &ms) || !(ms > 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", item, "' is not ttft:MS, tpot:MS or e2e:MS"));
    }
    *limit = ms / 1000;
  }
  return limits;
}

// ------------------------------------------------------------------------------------ time series

TimeSeries::Bucket& TimeSeries::At(double seconds) {
  while (seconds >= width_ * kBuckets) {
    for (size_t i = 1; i < buckets_.size(); ++i) {
      Bucket& into = buckets_[i / 2];
      Bucket& from = buckets_[i];
      if (i % 2 == 0) {
        into = std::move(from);
        continue;
      }
      into.ttft.Merge(from.ttft);
      into.itl.Merge(from.itl);
      into.busy += from.busy;
      into.tokens += from.tokens;
      into.ended += from.ended;
    }
    buckets_.resize((buckets_.size() + 1) / 2);
    width_ *= 2;
  }
  const size_t index = std::min(static_cast<size_t>(seconds / width_), kBuckets - 1);
  if (index >= buckets_.size()) buckets_.resize(index + 1);
  return buckets_[index];
}

void TimeSeries::AddBusy(double from, double to) {
  At(to);  // the width no longer changes below
  for (double at = from; at < to;) {
    const double next = std::min(to, (std::floor(at / width_ + 1e-9) + 1) * width_);
    At(at + (next - at) / 2).busy += next - at;
    at = next;
  }
}

void TimeSeries::Add(const Record& record) {
  AddBusy(record.sent, record.ended);
  At(record.ended).ended += 1;
  end_ = std::max(end_, record.ended);
  if (!record.first_token.has_value()) return;
  double at = *record.first_token;
  Bucket& first = At(at);
  first.tokens += 1;
  // Delayed reads would show as latency of the server.
  const bool measured = record.kind != Kind::kSlow;
  if (measured) first.ttft.Add(at - record.sent);
  for (float gap : record.gaps) {
    at += gap;
    Bucket& bucket = At(at);
    bucket.tokens += 1;
    if (measured) bucket.itl.Add(gap);
  }
  end_ = std::max(end_, at);
}

Json TimeSeries::ToJson() const {
  Json json = {{"bucket_seconds", width_}};
  for (const char* name : {"t",
                           "output_tokens_per_second",
                           "requests_per_second",
                           "running",
                           "ttft_p50",
                           "ttft_p99",
                           "itl_p50",
                           "itl_p99"}) {
    json[name] = Json::array();
  }
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const Bucket& bucket = buckets_[i];
    const double begin = static_cast<double>(i) * width_;
    const double seconds = std::min(width_, end_ - begin);  // the last bucket is not full
    if (seconds < width_ / 10) break;                       // too short for a rate
    json["t"].push_back(begin + seconds / 2);
    json["output_tokens_per_second"].push_back(static_cast<double>(bucket.tokens) / seconds);
    json["requests_per_second"].push_back(static_cast<double>(bucket.ended) / seconds);
    json["running"].push_back(bucket.busy / seconds);
    json["ttft_p50"].push_back(OrNull(bucket.ttft, 0.5));
    json["ttft_p99"].push_back(OrNull(bucket.ttft, 0.99));
    json["itl_p50"].push_back(OrNull(bucket.itl, 0.5));
    json["itl_p99"].push_back(OrNull(bucket.itl, 0.99));
  }
  return json;
}

// --------------------------------------------------------------------------------------- recorder

void Recorder::Add(const Record& record) {
  std::lock_guard lock(mu_);
  first_sent_ = ended_ == 0 ? record.sent : std::min(first_sent_, record.sent);
  last_ended_ = std::max(last_ended_, record.ended);
  ++ended_;
  tokens_ += record.tokens();
  Count& count = outcomes_[{record.kind, record.outcome}];
  ++count.requests;
  count.expected = record.expected();
  const bool may_fail = record.kind == Kind::kCancel || record.kind == Kind::kMalformed;
  if (!may_fail && !record.expected()) ++failed_;
  if (record.kind == Kind::kPlain) ++plain_;
  series_.Add(record);
  if (!record.finished()) return;
  ++finished_;
  prompt_tokens_ += record.prompt_tokens;
  cached_tokens_ += record.cached_tokens;
  read_bytes_ += record.read_bytes;
  dense_bytes_ += record.dense_bytes;
  if (record.kind == Kind::kPlain) AddLatencies(record);
}

void Recorder::AddLatencies(const Record& record) {
  const double e2e = record.ended - record.sent;
  const std::optional<double> tpot = Tpot(record);
  e2e_.Add(e2e);
  for (float gap : record.gaps) itl_.Add(gap);
  if (tpot.has_value()) tpot_.Add(*tpot);
  bool good = !limits_.e2e.has_value() || e2e <= *limits_.e2e;
  if (limits_.tpot.has_value() && tpot.has_value()) good &= *tpot <= *limits_.tpot;
  if (record.first_token.has_value()) {
    const double ttft = *record.first_token - record.sent;
    ttft_.Add(ttft);
    if (limits_.ttft.has_value()) good &= ttft <= *limits_.ttft;
  }
  good_ += good;
}

Json Recorder::Outcomes() const {
  Json rows = Json::array();
  for (const auto& [key, count] : outcomes_) {
    rows.push_back({{"kind", KindName(key.first)},
                    {"outcome", key.second},
                    {"requests", count.requests},
                    {"expected", count.expected}});
  }
  return rows;
}

Json Recorder::Throughput() const {
  const double seconds = last_ended_ - first_sent_;
  return {{"seconds", seconds},
          {"requests", ended()},
          {"finished_requests", finished_},
          {"finished_requests_per_second", Per(static_cast<double>(finished_), seconds)},
          {"prompt_tokens", prompt_tokens_},
          {"cached_prompt_tokens", cached_tokens_},
          {"prompt_tokens_per_second", Per(static_cast<double>(prompt_tokens_), seconds)},
          {"output_tokens", tokens()},
          {"output_tokens_per_second", Per(static_cast<double>(tokens()), seconds)},
          {"kv_read_fraction",
           dense_bytes_ > 0 ? static_cast<double>(read_bytes_) / static_cast<double>(dense_bytes_)
                            : 1}};
}

Json Recorder::Goodput() const {
  if (!limits_.any()) return nullptr;
  const auto ms = [](const std::optional<double>& s) {
    return s.has_value() ? Json(*s * 1000) : Json();
  };
  return {{"limits_ms",
           {{"ttft", ms(limits_.ttft)}, {"tpot", ms(limits_.tpot)}, {"e2e", ms(limits_.e2e)}}},
          {"good_requests", good_},
          {"of_plain_requests", plain_},
          {"fraction", plain_ > 0 ? static_cast<double>(good_) / static_cast<double>(plain_) : 0},
          {"good_requests_per_second", Per(static_cast<double>(good_), last_ended_ - first_sent_)}};
}

Json Recorder::ToJson() const {
  std::lock_guard lock(mu_);
  uint64_t unexpected = 0;
  for (const auto& [key, count] : outcomes_) unexpected += count.expected ? 0 : count.requests;
  return {{"outcomes", Outcomes()},
          {"failed", failed()},
          {"unexpected", unexpected},
          {"latency",
           {{"ttft", LatencyJson(ttft_)},
            {"itl", LatencyJson(itl_)},
            {"tpot", LatencyJson(tpot_)},
            {"e2e", LatencyJson(e2e_)}}},
          {"throughput", Throughput()},
          {"goodput", Goodput()},
          {"series", series_.ToJson()}};
}

}  // namespace asynctls
