// SPDX-License-Identifier: Apache-2.0
#include "client/bench/svg_chart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace asynctls {
namespace {

using ::testing::DoubleNear;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pointwise;

void ExpectTicks(double low, double high, int count, const std::vector<double>& expected) {
  EXPECT_THAT(Ticks(low, high, count), Pointwise(DoubleNear(1e-9), expected));
}

TEST(TicksTest, AreRoundAndCoverTheRange) {
  ExpectTicks(0, 10, 5, {0, 2, 4, 6, 8, 10});
  ExpectTicks(0, 0.37, 4, {0, 0.1, 0.2, 0.3, 0.4});
  ExpectTicks(3, 17, 3, {0, 5, 10, 15, 20});
  ExpectTicks(0, 1700, 4, {0, 500, 1000, 1500, 2000});
}

TEST(ChartTest, DrawsALinePerSeriesWithGaps) {
  const std::string svg = ChartSvg({"Speed",
                                    "s",
                                    "1/s",
                                    false,
                                    false,
                                    0,
                                    {{"fast", {{0, 1}, {1, 2}, {2, std::nullopt}, {3, 4}, {4, 4}}},
                                     {"slow", {{0, 1}, {1, 1}}}}});
  EXPECT_THAT(svg, HasSubstr("line s1"));
  EXPECT_THAT(svg, HasSubstr("line s2"));
  EXPECT_THAT(svg, HasSubstr("class=legend"));
  const size_t path = svg.find(" d=\"M");
  ASSERT_NE(path, std::string::npos);
  const std::string line = svg.substr(path + 5, svg.find('"', path + 5) - path - 5);
  EXPECT_THAT(line, HasSubstr("M"));  // the pen is lifted once
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(ChartTest, LogAxesLeaveOutWhatIsNotPositive) {
  const std::string svg =
      ChartSvg({"CDF", "ms", "%", true, false, 100, {{"x", {{0, 0}, {1, 10}, {100, 100}}}}});
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, HasSubstr(">10</text>"));
}

TEST(ChartTest, BarsSayTheirRange) {
  const std::string svg = ChartSvg(
      {"H", "ms", "", true, true, 0, {{"h", {{1, 5}, {2, 0}, {4, 7}, {8, std::nullopt}}}}});
  EXPECT_THAT(svg, HasSubstr("<title>1.00 to 2.00: 5.00</title>"));
  EXPECT_THAT(svg, HasSubstr("<title>4.00 to 8.00: 7.00</title>"));
  EXPECT_THAT(svg, Not(HasSubstr("2.00 to 4.00")));
}

TEST(ChartTest, SaysWhereNothingIs) {
  EXPECT_THAT(ChartSvg({"T", "s", "", false, false, 0, {{"x", {}}}}),
              HasSubstr("nothing measured"));
  EXPECT_THAT(ChartSvg({"T", "s", "", false, false, 0, {{"x", {{1, 1}}}}}), HasSubstr("dot s1"));
}

TEST(EscapeHtmlTest, LeavesNoMarkup) {
  EXPECT_EQ(EscapeHtml("<a b=\"c\">&'"), "&lt;a b=&quot;c&quot;&gt;&amp;&#39;");
}

}  // namespace
}  // namespace asynctls
