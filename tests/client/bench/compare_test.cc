// SPDX-License-Identifier: Apache-2.0
#include "client/bench/compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/client/bench/sample_report.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;

const ComparedFigure& Row(const std::vector<ComparedFigure>& rows, const std::string& name) {
  for (const ComparedFigure& row : rows) {
    if (row.a.name == name) return row;
  }
  ADD_FAILURE() << name;
  return rows.front();
}

TEST(CompareTest, RatiosAreBOverA) {
  const auto rows = Compare(SampleReport(0.01), SampleReport(0.02));
  EXPECT_NEAR(Row(rows, "ITL p99").a.value, 10, 1e-4);
  EXPECT_NEAR(Row(rows, "ITL p99").b.value, 20, 1e-4);
  EXPECT_NEAR(Row(rows, "ITL p99").ratio, 2, 1e-6);
  EXPECT_EQ(Row(rows, "ITL p99").a.better, -1);
  EXPECT_EQ(Row(rows, "output tokens").a.better, 1);
  EXPECT_LT(Row(rows, "output tokens").ratio, 1);
  EXPECT_FALSE(Row(rows, "failed").has_ratio);  // 0 / 0
}

TEST(CompareTest, FiguresOnlyOneHasAreLeftOut) {
  Json without = SampleReport(0.01);
  without["goodput"] = nullptr;
  const size_t all = Compare(SampleReport(0.01), SampleReport(0.01)).size();
  EXPECT_EQ(Compare(SampleReport(0.01), without).size(), all - 2);
  EXPECT_EQ(Compare(without, SampleReport(0.01)).size(), all - 2);
}

TEST(CompareTest, NamesFlagsThatDiffer) {
  Json a = SampleReport(0.01), b = SampleReport(0.01);
  b["flags"] = {{"target", "h:1"}, {"rate", "20"}, {"mode", "dense"}, {"report", "f"}};
  const auto flags = DifferentFlags(a, b);
  ASSERT_EQ(flags.size(), 2u);
  EXPECT_EQ(flags[0].name + flags[0].a + flags[0].b, "mode-dense");
  EXPECT_THAT(CompareText(a, b), HasSubstr("rate: 10 | 20"));
}

TEST(ReportTextTest, ShowsOutcomesLatenciesAndTheClient) {
  Json report = SampleReport(0.01);
  report["outcomes"].push_back(
      {{"kind", "plain"}, {"outcome", "internal"}, {"requests", 3}, {"expected", false}});
  const std::string text = ReportText(report);
  EXPECT_THAT(text, HasSubstr("internal                   3  unexpected"));
  EXPECT_THAT(text, HasSubstr("p99.9"));
  EXPECT_THAT(text, HasSubstr("100.00"));  // TTFT in ms
  EXPECT_THAT(text, HasSubstr("7 threads"));
  EXPECT_THAT(text, HasSubstr("0.20 ms after their time"));
}

TEST(CheckReportTest, NamesWhatIsMissing) {
  EXPECT_TRUE(CheckReport(SampleReport(0.01), "f").ok());
  EXPECT_THAT(std::string(CheckReport(Json(5), "f.json").message()), HasSubstr("f.json"));
  Json other = SampleReport(0.01);
  other["schema"] = "asynctls.bench/0";
  EXPECT_FALSE(CheckReport(other, "f").ok());
  Json part = SampleReport(0.01);
  part.erase("series");
  EXPECT_THAT(std::string(CheckReport(part, "f").message()), HasSubstr("'series'"));
  part = SampleReport(0.01);
  part["latency"]["itl"]["p99"] = "fast";
  EXPECT_THAT(std::string(CheckReport(part, "f").message()), HasSubstr("latency.itl.p99"));
}

TEST(ShortNumberTest, HasThreeDigitsOrMore) {
  EXPECT_EQ(ShortNumber(0), "0");
  EXPECT_EQ(ShortNumber(0.012345), "0.0123");
  EXPECT_EQ(ShortNumber(1.2345), "1.23");
  EXPECT_EQ(ShortNumber(123.45), "123.5");
  EXPECT_EQ(ShortNumber(123456.7), "123457");
}

}  // namespace
}  // namespace asynctls::testing
