// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

template <typename B>
using EmbedTest = OpTest<B>;
TYPED_TEST_SUITE(EmbedTest, Backends);

TYPED_TEST(EmbedTest, LooksUpIdsAndLastTokensOfItsPartOfTheVocabulary) {
  const auto table = Normal<bf16, 2>({5, 7}, 1);
  const auto ids = List<int32_t>({10, 14, 9, 15, -1, -3});
  const auto last = List<int32_t>({12, 500, 11});
  Tensor<bf16, 2> out({6, 7});
  out.Fill(ToBf16(3));
  this->backend_.ops.Embed(
      {.ids = ids, .last_token = last, .table = table, .first_id = 10, .out = out});
  const int expected_row[] = {0, 4, -1, -1, 2, 1};
  for (int t = 0; t < 6; ++t) {
    for (int i = 0; i < 7; ++i) {
      const bf16 want = expected_row[t] < 0 ? bf16{0} : table(expected_row[t], i);
      EXPECT_EQ(out(t, i).bits, want.bits) << t << " " << i;
    }
  }
}

TYPED_TEST(EmbedTest, ManyRowsAndNone) {
  const auto table = Normal<bf16, 2>({64, 256}, 2);
  const auto last = List<int32_t>({0});
  for (int64_t rows : {0, 1, 300}) {
    Tensor<int32_t, 1> ids({rows});
    for (int64_t t = 0; t < rows; ++t) ids(t) = static_cast<int32_t>(t * 7 % 64);
    Tensor<bf16, 2> out({rows, 256}), want({rows, 256});
    EmbedArgs args{.ids = ids, .last_token = last, .table = table, .first_id = 0, .out = out};
    this->backend_.ops.Embed(args);
    args.out = want;
    this->reference_.Embed(args);
    EXPECT_TRUE(Same(out.view(), want.view()));
  }
}

}  // namespace
}  // namespace asynctls::testing
