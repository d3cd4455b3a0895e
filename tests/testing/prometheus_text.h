// SPDX-License-Identifier: Apache-2.0
// Reads the Prometheus text format back and fails the test on what a scraper would refuse or
// misread: bad names, two TYPE lines of a family, samples outside their family, a series twice,
// histogram buckets that fall or do not end in +Inf = count.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

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
    static const std::regex help(R"(# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) .+)");
    static const std::regex type(R"(# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram))");
    static const std::regex sample(R"(([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(.*)\})? (\S+))");
    std::smatch match;
    if (std::regex_match(line, match, help)) return;
    if (std::regex_match(line, match, type)) {
      family_ = match[1];
      EXPECT_TRUE(text_.types.emplace(family_, match[2]).second) << "two TYPE lines: " << line;
      return;
    }
    ASSERT_TRUE(std::regex_match(line, match, sample)) << line;
    EXPECT_TRUE(text_.samples.emplace(line.substr(0, line.rfind(' ')), Number(match[4])).second)
        << "twice: " << line;
    ReadSample(match[1], match[3], Number(match[4]));
  }

  void ReadSample(const std::string& name, const std::string& labels, double value) {
    static const std::regex label(R"~(([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\]*)",?)~");
    std::string others, bound, rest = labels;
    std::set<std::string> names;
    for (std::smatch match; std::regex_search(rest, match, label); rest = match.suffix()) {
      ASSERT_EQ(match.position(), 0) << labels;
      EXPECT_TRUE(names.insert(match[1]).second) << "label twice: " << labels;
      if (match[1] == "le") bound = match[2];
      if (match[1] != "le") others += match.str(1) + "=" + match.str(2) + ",";
    }
    EXPECT_EQ(rest, "") << labels;
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
