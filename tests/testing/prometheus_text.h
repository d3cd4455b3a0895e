// SPDX-License-Identifier: Apache-2.0
// Reads the Prometheus text format back and fails the test on what a scraper would refuse or
// misread: bad names, two TYPE lines of a family, samples outside their family, a series twice,
// histogram buckets that fall or do not end in +Inf = count.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "prometheus/check_names.h"
#include "prometheus/metric_family.h"
#include "prometheus/text_serializer.h"

namespace asynctls::testing {

struct PrometheusText {
  std::map<std::string, std::string> types;  // family -> type
  std::map<std::string, double> samples;     // series, labels as written -> value
};

class PrometheusTextReader {
 public:
  PrometheusText Read(const std::vector<prometheus::MetricFamily>& families) {
    std::stringstream text;
    prometheus::TextSerializer().Serialize(text, families);
    for (std::string line; std::getline(text, line);) ReadLine(line);
    for (const auto& [series, last] : buckets_) {
      EXPECT_EQ(last.bound, "+Inf") << series;
      EXPECT_EQ(last.count, counts_[series]) << series << ": the last bucket is the count";
    }
    return text_;
  }

 private:
  struct Bucket {
    std::string bound;
    double count = 0;
  };

  void ReadLine(const std::string& line) {
    std::istringstream words(line);
    std::string hash, what, family, type;
    words >> hash >> what >> family >> type;
    if (hash != "#") return ReadSample(line);
    EXPECT_TRUE(prometheus::CheckMetricName(family)) << line;
    if (what == "HELP") return;
    EXPECT_EQ(what, "TYPE") << line;
    EXPECT_TRUE(type == "counter" || type == "gauge" || type == "histogram") << line;
    EXPECT_TRUE(text_.types.emplace(family, type).second) << "two TYPE lines: " << line;
    family_ = family;
  }

  void ReadSample(const std::string& line) {
    const size_t space = line.rfind(' ');
    ASSERT_NE(space, std::string::npos) << line;
    const std::string series = line.substr(0, space);
    const double value = Number(line.substr(space + 1));
    EXPECT_TRUE(text_.samples.emplace(series, value).second) << "twice: " << line;
    const size_t brace = std::min(series.find('{'), series.size());
    EXPECT_TRUE(prometheus::CheckMetricName(series.substr(0, brace))) << line;
    if (brace == series.size()) return Count(series, "", "", value);
    EXPECT_EQ(series.back(), '}') << line;
    ReadLabels(series.substr(0, brace), series.substr(brace + 1, series.size() - brace - 2), value);
  }

  // `labels` as in a="1",b="2"; no value holds a quote.
  void ReadLabels(const std::string& name, const std::string& labels, double value) {
    std::string others, bound;
    std::set<std::string> names;
    for (size_t at = 0; at < labels.size();) {
      const size_t equals = labels.find("=\"", at);
      ASSERT_NE(equals, std::string::npos) << labels;
      const size_t quote = labels.find('"', equals + 2);
      ASSERT_NE(quote, std::string::npos) << labels;
      const std::string label = labels.substr(at, equals - at);
      EXPECT_TRUE(prometheus::CheckLabelName(label)) << labels;
      EXPECT_TRUE(names.insert(label).second) << "label twice: " << labels;
      if (label == "le") bound = labels.substr(equals + 2, quote - equals - 2);
      if (label != "le") others += labels.substr(at, quote - at + 1) + ",";
      at = quote + 1;
      if (at == labels.size()) break;
      ASSERT_EQ(labels[at], ',') << labels;
      ++at;
    }
    Count(name, others, bound, value);
  }

  // A sample of the family of the last TYPE line; `bound` of a bucket, `others` its other labels.
  void Count(const std::string& name,
             const std::string& others,
             const std::string& bound,
             double value) {
    if (text_.types[family_] != "histogram") {
      EXPECT_EQ(name, family_) << "outside its family";
      EXPECT_GE(value, 0) << name;
      return;
    }
    const std::string series = family_ + "{" + others;
    const std::string part = name.substr(family_.size());
    EXPECT_EQ(name.substr(0, family_.size()), family_) << "outside its family";
    if (part == "_count") counts_[series] = value;
    if (part == "_bucket") {
      EXPECT_GE(value, buckets_[series].count) << series << " le=" << bound;
      const bool rises = buckets_[series].bound.empty() || bound == "+Inf" ||
                         Number(bound) > Number(buckets_[series].bound);
      EXPECT_TRUE(rises) << series << " le=" << bound;
      buckets_[series] = {bound, value};
    }
    EXPECT_TRUE(part == "_count" || part == "_sum" || part == "_bucket") << name;
  }

  static double Number(const std::string& text) {
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    EXPECT_TRUE(end != text.c_str() && *end == '\0') << text;
    return number;
  }

  std::string family_;
  std::map<std::string, Bucket> buckets_;  // the last one, by series
  std::map<std::string, double> counts_;
  PrometheusText text_;
};

}  // namespace asynctls::testing
