// SPDX-License-Identifier: Apache-2.0
#include "client/bench/html_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/client/bench/sample_report.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

// Nothing is loaded from elsewhere, numbers are numbers, what was opened is closed.
void ExpectWhole(const std::string& html) {
  for (const char* external : {"http:", "https:", "src=", "href=", "url(", "@import", "//cdn"}) {
    EXPECT_THAT(html, Not(HasSubstr(external)));
  }
  for (const char* broken : {"nan", "=inf", "-inf"}) EXPECT_THAT(html, Not(HasSubstr(broken)));
  for (const char* tag : {"svg", "figure", "table", "main", "style", "html"}) {
    EXPECT_EQ(Count(html, std::string("<") + tag), Count(html, std::string("</") + tag)) << tag;
  }
  EXPECT_THAT(html, HasSubstr("prefers-color-scheme:dark"));
}

TEST(HtmlReportTest, IsWholeAndShowsEverything) {
  const std::string html = HtmlReport(SampleReport(0.01));
  ExpectWhole(html);
  EXPECT_EQ(Count(html, "<svg"), 11u);  // 5 over time, 2 histograms, 4 distributions
  for (const char* part : {"Output tokens",
                           "Running requests",
                           "Time to first token, cumulative",
                           "Outcomes",
                           "p99.9",
                           "within the limits",
                           "cpu_us_per_message"}) {
    EXPECT_THAT(html, HasSubstr(part));
  }
  EXPECT_THAT(html, HasSubstr("&lt;b&gt;model&lt;/b&gt;"));  // names are text, not markup
  EXPECT_THAT(html, Not(HasSubstr("<b>model")));
}

TEST(HtmlReportTest, ARunWithoutAnyTokenIsAReportToo) {
  Recorder recorder({});
  Json report = SampleReport(0.01);
  const Json nothing = recorder.ToJson();
  for (const auto& [key, value] : nothing.items()) report[key] = value;
  const std::string html = HtmlReport(report);
  ExpectWhole(html);
  EXPECT_THAT(html, HasSubstr("nothing measured"));
}

TEST(HtmlComparisonTest, MarksWhatIsBetterAndWorse) {
  const std::string html = HtmlComparison(SampleReport(0.01), SampleReport(0.02));
  ExpectWhole(html);
  EXPECT_THAT(html, HasSubstr("class=bad>2.000"));
  EXPECT_THAT(HtmlComparison(SampleReport(0.02), SampleReport(0.01)),
              HasSubstr("class=good>0.500"));
  EXPECT_THAT(html, HasSubstr("A p50"));
  EXPECT_THAT(html, HasSubstr("B p99"));
}

}  // namespace
}  // namespace asynctls::testing
