// SPDX-License-Identifier: Apache-2.0
#include "client/bench/recorder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls {
namespace {

using ::testing::HasSubstr;

// Sent at `sent`; the first token 0.1 s later, `tokens` tokens 0.01 s apart, the end with the last.
Record Finished(Kind kind, double sent, int tokens) {
  Record record;
  record.kind = kind;
  record.outcome = "length";
  record.sent = sent;
  record.first_token = sent + 0.1;
  record.gaps.assign(static_cast<size_t>(tokens - 1), 0.01f);
  record.ended = sent + 0.1 + 0.01 * (tokens - 1);
  record.prompt_tokens = 50;
  record.cached_tokens = 10;
  record.read_bytes = 1;
  record.dense_bytes = 4;
  return record;
}

Record Failed(Kind kind, const char* outcome) {
  Record record;
  record.kind = kind;
  record.outcome = outcome;
  record.ended = 0.01;
  return record;
}

uint64_t Requests(const Json& report, const char* kind, const char* outcome) {
  uint64_t sum = 0;
  for (const Json& row : report["outcomes"]) {
    if (row["kind"] == kind && row["outcome"] == outcome) sum += row["requests"].get<uint64_t>();
  }
  return sum;
}

TEST(RecorderTest, EveryRequestIsInOneRow) {
  Recorder recorder({});
  for (Kind kind : kKinds) {
    for (const char* outcome : {"cancelled", "deadline_exceeded", "invalid_argument", "internal"}) {
      recorder.Add(Failed(kind, outcome));
    }
    recorder.Add(Finished(kind, 0, 3));
  }
  const Json report = recorder.ToJson();
  uint64_t sum = 0, unexpected = 0;
  for (const Json& row : report["outcomes"]) {
    sum += row["requests"].get<uint64_t>();
    if (!row["expected"].get<bool>()) unexpected += row["requests"].get<uint64_t>();
  }
  EXPECT_EQ(sum, 25u);
  EXPECT_EQ(recorder.ended(), 25u);
  EXPECT_EQ(Requests(report, "slow", "internal"), 1u);
  // Expected: the finished of all but malformed, and one more of cancel, deadline and malformed.
  EXPECT_EQ(unexpected, 25u - 4 - 3);
  EXPECT_EQ(report["unexpected"], unexpected);
  EXPECT_EQ(recorder.failed(), 4u + 4 + 3);  // plain, slow, deadline
}

TEST(RecorderTest, LatenciesAreThoseOfPlainFinishedRequests) {
  Recorder recorder({});
  recorder.Add(Finished(Kind::kPlain, 1, 5));
  recorder.Add(Finished(Kind::kSlow, 1, 500));
  recorder.Add(Finished(Kind::kCancel, 1, 500));
  recorder.Add(Failed(Kind::kPlain, "unavailable"));
  const Json latency = recorder.ToJson()["latency"];
  EXPECT_EQ(latency["ttft"]["count"], 1);
  EXPECT_NEAR(latency["ttft"]["p50"].get<double>(), 0.1, 1e-6);
  EXPECT_EQ(latency["itl"]["count"], 4);
  EXPECT_NEAR(latency["itl"]["max"].get<double>(), 0.01, 1e-6);
  EXPECT_EQ(latency["tpot"]["count"], 1);
  EXPECT_NEAR(latency["tpot"]["mean"].get<double>(), 0.01, 1e-6);
  EXPECT_NEAR(latency["e2e"]["p99"].get<double>(), 0.14, 1e-6);
}

TEST(RecorderTest, OneTokenHasNoTpot) {
  Recorder recorder({});
  recorder.Add(Finished(Kind::kPlain, 0, 1));
  const Json latency = recorder.ToJson()["latency"];
  EXPECT_EQ(latency["ttft"]["count"], 1);
  EXPECT_EQ(latency["itl"]["count"], 0);
  EXPECT_EQ(latency["tpot"]["count"], 0);
}

TEST(RecorderTest, ThroughputIsOverTheWholeRun) {
  Recorder recorder({});
  recorder.Add(Finished(Kind::kPlain, 2, 11));    // ends at 2.2
  recorder.Add(Finished(Kind::kPlain, 3.8, 11));  // ends at 4.0
  const Json throughput = recorder.ToJson()["throughput"];
  EXPECT_NEAR(throughput["seconds"].get<double>(), 2, 1e-9);
  EXPECT_NEAR(throughput["finished_requests_per_second"].get<double>(), 1, 1e-9);
  EXPECT_NEAR(throughput["prompt_tokens_per_second"].get<double>(), 50, 1e-9);
  EXPECT_NEAR(throughput["output_tokens_per_second"].get<double>(), 11, 1e-9);
  EXPECT_EQ(throughput["cached_prompt_tokens"], 20);
  EXPECT_DOUBLE_EQ(throughput["kv_read_fraction"], 0.25);
}

TEST(RecorderTest, GoodputCountsPlainRequestsWithinAllLimits) {
  Recorder recorder(*GoodputLimits::Parse("ttft:150,tpot:15,e2e:200"));
  recorder.Add(Finished(Kind::kPlain, 0, 5));
  recorder.Add(Finished(Kind::kPlain, 0, 50));  // ends too late
  Record slow_start = Finished(Kind::kPlain, 0, 2);
  *slow_start.first_token += 0.06;
  recorder.Add(slow_start);
  Record slow_tokens = Finished(Kind::kPlain, 0, 2);
  slow_tokens.gaps[0] = 0.02f;
  recorder.Add(slow_tokens);
  recorder.Add(Failed(Kind::kPlain, "unavailable"));
  recorder.Add(Finished(Kind::kDeadline, 0, 5));
  const Json goodput = recorder.ToJson()["goodput"];
  EXPECT_EQ(goodput["good_requests"], 1);
  EXPECT_EQ(goodput["of_plain_requests"], 5);
  EXPECT_DOUBLE_EQ(goodput["fraction"], 0.2);
  EXPECT_EQ(goodput["limits_ms"]["tpot"], 15);
  EXPECT_TRUE(Recorder({}).ToJson()["goodput"].is_null());
}

TEST(GoodputLimitsTest, NamesWhatIsWrong) {
  for (const char* bad : {"", "ttft", "ttft:x", "ttft:0", "itl:5", "ttft:1:2"}) {
    EXPECT_THAT(std::string(GoodputLimits::Parse(bad).status().message()), HasSubstr("is not ttft"))
        << bad;
  }
}

double Sum(const Json& values) {
  double sum = 0;
  for (const Json& value : values) sum += value.get<double>();
  return sum;
}

TEST(TimeSeriesTest, KeepsTotalsWhileItGrows) {
  TimeSeries series;
  double tokens = 0, busy = 0;
  constexpr int kRequests = 60;
  for (int i = 0; i < kRequests; ++i) {  // up to 60 s: the width of 0.1 s doubles twice
    const Record record = Finished(Kind::kPlain, i, 95);
    series.Add(record);
    tokens += static_cast<double>(record.tokens());
    busy += record.ended - record.sent;
  }
  const Json json = series.ToJson();
  const double width = json["bucket_seconds"];
  EXPECT_DOUBLE_EQ(width, 0.4);
  ASSERT_LE(json["t"].size(), TimeSeries::kBuckets);
  for (const auto& [name, values] : json.items()) {
    if (!values.is_array()) continue;
    EXPECT_EQ(values.size(), json["t"].size()) << name;
  }
  // The last bucket is cut at the end of the run, so sums times the width are a little high.
  EXPECT_NEAR(width * Sum(json["output_tokens_per_second"]), tokens, 0.02 * tokens);
  EXPECT_NEAR(width * Sum(json["running"]), busy, 0.02 * busy);
  EXPECT_NEAR(width * Sum(json["requests_per_second"]), kRequests, 3);
  EXPECT_NEAR(json["ttft_p99"][0].get<double>(), 0.1, 1e-6);
}

TEST(TimeSeriesTest, HasGapsWhereNothingWas) {
  TimeSeries series;
  series.Add(Finished(Kind::kPlain, 0, 2));
  series.Add(Finished(Kind::kPlain, 5, 2));
  const Json json = series.ToJson();
  EXPECT_TRUE(json["ttft_p50"][25].is_null());
  EXPECT_EQ(json["running"][25], 0);
}

}  // namespace
}  // namespace asynctls
