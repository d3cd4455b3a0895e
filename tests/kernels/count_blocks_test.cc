// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

using ::testing::ElementsAre;

// Two rows of two heads: row 0 reads blocks {0, 2} and {2}, row 1 nothing and {0, 1, 2, 3}.
struct Problem {
  Problem() : tokens({2, 2, 5}), count({2, 2}), heat({2, 4}) {
    tokens.Fill(0);
    const int32_t rows[4][5] = {
        {0, 63, 128, 191, -1}, {130, 131, 132, -1, -1}, {-1}, {1, 64, 65, 128, 255}};
    for (int i = 0; i < 4; ++i) std::copy_n(rows[i], 5, &tokens(i / 2, i % 2, 0));
    count(0, 0) = 4;
    count(0, 1) = 3;
    count(1, 0) = 0;
    count(1, 1) = 5;
    heat.Fill(7);
  }
  template <typename OpsType>
  void Run(OpsType& ops, bool add) {
    Selection selection;
    selection.tokens = tokens;
    selection.token_count = count;
    ops.CountBlocks({selection, heat, add});
  }
  std::vector<int32_t> Row(int s) { return {heat.view()[s].begin(), heat.view()[s].end()}; }

  Tensor<int32_t, 3> tokens;
  Tensor<int32_t, 2> count, heat;
};

template <typename B>
using CountBlocksTest = OpTest<B>;
TYPED_TEST_SUITE(CountBlocksTest, Backends);

TYPED_TEST(CountBlocksTest, CountsHeadsNotTokens) {
  Problem p;
  p.Run(this->backend_.ops, false);
  EXPECT_THAT(p.Row(0), ElementsAre(1, 0, 2, 0));
  EXPECT_THAT(p.Row(1), ElementsAre(1, 1, 1, 1));
  p.Run(this->backend_.ops, true);
  EXPECT_THAT(p.Row(0), ElementsAre(2, 0, 4, 0));
  EXPECT_THAT(p.Row(1), ElementsAre(2, 2, 2, 2));
}

}  // namespace
}  // namespace asynctls::testing
