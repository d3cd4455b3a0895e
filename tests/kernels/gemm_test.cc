// SPDX-License-Identifier: Apache-2.0
// Gemm and Logits on every backend, and the ways the CPU has to a product, each by itself:
// agreement with the reference, and the row contract (a row's bits do not depend on the number of
// rows).
#include "kernels/cpu/gemm.h"

#include <gmock/gmock.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/amx.h"
#include "tests/testing/backends.h"
#include "tests/testing/compare.h"

namespace asynctls::testing {
namespace {

template <typename B>
using GemmTest = OpTest<B>;
TYPED_TEST_SUITE(GemmTest, Backends);

TYPED_TEST(GemmTest, MultipliesByTheTranspose) {
  Tensor<bf16, 2> x({1, 2}), w({3, 2}), out({1, 3});
  Tensor<float, 2> logits({1, 3});
  for (int i = 0; i < 2; ++i) x(0, i) = ToBf16(static_cast<float>(1 + i));
  for (int i = 0; i < 6; ++i) w(i / 2, i % 2) = ToBf16(static_cast<float>(i));
  Matrix matrix{w.view()};
  this->backend_.ops.Prepare(matrix);
  this->backend_.ops.Gemm({.x = x, .w = &matrix, .out = out});
  this->backend_.ops.Logits({.x = x, .w = &matrix, .out = logits});
  for (int n = 0; n < 3; ++n) {
    EXPECT_EQ(ToFloat(out(0, n)), static_cast<float>(6 * n + 2));
    EXPECT_EQ(logits(0, n), static_cast<float>(6 * n + 2));
  }
}

struct Shape {
  int64_t rows, columns, depth;
};
constexpr Shape kShapes[] = {{0, 32, 32},
                             {1, 1, 1},
                             {3, 5, 7},
                             {2, 31, 33},
                             {17, 48, 64},
                             {33, 96, 160},
                             {64, 64, 704},
                             {65, 100, 72},
                             {130, 65, 40},
                             {300, 544, 96},
                             {70, 520, 1100},
                             {5, 2048, 256}};

TYPED_TEST(GemmTest, AgreesWithTheReferencePreparedOrNot) {
  for (const auto& [rows, columns, depth] : kShapes) {
    const auto x = Normal<bf16, 2>({rows, depth}, 1);
    const auto w = Normal<bf16, 2>({columns, depth}, 2);
    Tensor<bf16, 2> prepared({columns, depth});
    prepared.CopyFrom(w);
    Matrix plain{w.view()}, matrix{prepared.view()};
    this->backend_.ops.Prepare(matrix);
    Tensor<bf16, 2> out({rows, columns}), want({rows, columns});
    Tensor<float, 2> logits({rows, columns}), want_logits({rows, columns});
    this->reference_.Gemm({.x = x, .w = &plain, .out = want});
    this->reference_.Logits({.x = x, .w = &plain, .out = want_logits});
    for (const Matrix* m : {&plain, &matrix}) {
      for (const bool decode : {false, true}) {
        out.Fill(ToBf16(99));
        this->backend_.ops.Gemm({.x = x, .w = m, .out = out, .decode = decode});
        EXPECT_TRUE(Close(out.view(), want.view(), kGemm))
            << rows << " " << columns << " " << depth << " " << decode;
      }
      this->backend_.ops.Logits({.x = x, .w = m, .out = logits});
      EXPECT_TRUE(Close(logits.view(), want_logits.view(), kLogits))
          << rows << " " << columns << " " << depth;
    }
  }
}

TYPED_TEST(GemmTest, RowsDoNotDependOnTheirNumber) {
  for (const auto& [rows, columns, depth] : {Shape{300, 512, 1024}, Shape{300, 1408, 256}}) {
    const auto x = Normal<bf16, 2>({rows, depth}, 1);
    const auto w = Normal<bf16, 2>({columns, depth}, 2);
    Matrix matrix{w.view()};
    Tensor<bf16, 2> all({rows, columns}), some({rows, columns});
    for (const bool decode : {false, true}) {
      this->backend_.ops.Gemm({.x = x, .w = &matrix, .out = all, .decode = decode});
      for (int64_t count : {1, 2, 7, 8, 9, 16, 33, 64, 65, 129, 200}) {
        this->backend_.ops.Gemm({.x = x.view().Slice(0, count),
                                 .w = &matrix,
                                 .out = some.view().Slice(0, count),
                                 .decode = decode});
        EXPECT_TRUE(Same(some.view().Slice(0, count), all.view().Slice(0, count)))
            << count << " of " << columns << " x " << depth << " " << decode;
      }
    }
  }
}

// The bits are those of the ops by themselves, and a row's do not depend on the number of rows. The
// last shapes give a thread block several rounds of groups.
TYPED_TEST(GemmTest, NormGateAndResidualHaveTheBitsOfTheirOps) {
  auto& ops = this->backend_.ops;
  for (const auto& [most, columns, depth] : {Shape{0, 32, 32},
                                             Shape{6, 10, 24},
                                             Shape{70, 96, 576},
                                             Shape{33, 1040, 1088},
                                             Shape{9, 6352, 128},
                                             Shape{2, 21136, 64}}) {
    const auto x = Normal<bf16, 2>({most, depth}, 1);
    const auto w = Normal<bf16, 2>({columns, depth}, 2);
    const auto weight = Normal<bf16, 1>({depth}, 3);
    const auto stream = Normal<bf16, 2>({most, columns}, 4);
    Matrix matrix{w.view()};
    ops.Prepare(matrix);
    Tensor<bf16, 2> normed({most, depth}), out({most, columns}), gated({most, columns / 2});
    Tensor<bf16, 2> sum({most, columns}), want({most, columns});
    ops.RmsNorm({.x = x, .residual = {}, .weight = weight, .out = normed, .eps = 1e-6f});
    for (const bool decode : {false, true}) {
      ops.Gemm({.x = normed, .w = &matrix, .out = want, .decode = decode});
      ops.SwiGlu({.gate_up = want, .out = gated});
      for (int64_t i = 0; i < sum.size(); ++i) {
        sum.data()[i] = ToBf16(ToFloat(stream.data()[i]) + ToFloat(want.data()[i]));
      }
      for (const int64_t rows : {1, 2, 8, 9, 16, 17, 32, 33, 64, 70}) {
        if (rows > most) break;
        SCOPED_TRACE(absl::StrCat(rows, " x ", columns, " x ", depth, " ", decode));
        Tensor<bf16, 2> again({rows, depth}), factors({rows, columns / 2}), added({rows, columns});
        GemmArgs a{.x = x.view().Slice(0, rows),
                   .w = &matrix,
                   .out = out.view().Slice(0, rows),
                   .decode = decode,
                   .norm = weight,
                   .eps = 1e-6f,
                   .normed = again};
        ops.Gemm(a);
        EXPECT_TRUE(Same(a.out, want.view().Slice(0, rows)));
        a.gated = factors;
        ops.Gemm(a);
        EXPECT_TRUE(Same(factors.view(), gated.view().Slice(0, rows)));
        a.gated = {};
        std::copy_n(stream.data(), added.size(), added.data());
        a.residual = added;
        ops.Gemm(a);
        EXPECT_TRUE(Same(added.view(), sum.view().Slice(0, rows)));
        std::copy_n(stream.data(), added.size(), added.data());
        a.norm = {};
        a.x = normed.view().Slice(0, rows);
        ops.Gemm(a);
        EXPECT_TRUE(Same(added.view(), sum.view().Slice(0, rows)));
      }
    }
  }
}

using MultiplyFunction = void (*)(const Product&, ThreadTeam&);

struct Way {
  const char* name;
  bool (*usable)();
  MultiplyFunction multiply;
  bool packs;
};
void PrintTo(const Way& way, std::ostream* out) { *out << way.name; }

class WayTest : public ::testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (!GetParam().usable()) GTEST_SKIP() << "not on this machine";
  }
};

INSTANTIATE_TEST_SUITE_P(Gemm,
                         WayTest,
                         ::testing::Values(Way{"amx_packed", amx::Usable, amx::Multiply, true},
                                           Way{"amx_row_major", amx::Usable, amx::Multiply, false},
                                           Way{"fp32", [] { return true; }, MultiplyFp32, false}),
                         [](const auto& info) { return info.param.name; });

// The shapes of the demo model and (a part of the columns of) Qwen3-8B's.
constexpr Shape kModelShapes[] = {{1024, 1536, 256},
                                  {1024, 256, 1024},
                                  {1024, 1408, 256},
                                  {1024, 256, 704},
                                  {1024, 64, 4096},
                                  {1024, 32, 12288}};

TEST_P(WayTest, RowsDoNotDependOnTheirNumber) {
  ThreadTeam one(1), three(3);
  for (const auto& [rows, columns, depth] : kModelShapes) {
    const auto x = Normal<bf16, 2>({rows, depth}, 1);
    const auto w = Normal<bf16, 2>({columns, depth}, 2);
    if (GetParam().packs) amx::PackWeights(w.data(), columns, depth, three);
    Tensor<bf16, 2> all({rows, columns}), some({rows, columns});
    Product p{x.data(), w.data(), rows, columns, depth, GetParam().packs, all.data(), nullptr};
    GetParam().multiply(p, three);
    p.out_bf16 = some.data();
    for (int64_t count : {1, 2, 3, 15, 16, 17, 64, 200}) {
      p.rows = count;
      GetParam().multiply(p, count % 2 == 0 ? one : three);
      EXPECT_TRUE(Same(some.view().Slice(0, count), all.view().Slice(0, count)))
          << count << " of " << columns << " x " << depth;
    }
  }
}

TEST_P(WayTest, RowsDoNotDependOnTheirPlace) {
  ThreadTeam team(2);
  const auto x = Normal<bf16, 2>({100, 1056}, 1);
  const auto w = Normal<bf16, 2>({96, 1056}, 2);
  if (GetParam().packs) amx::PackWeights(w.data(), 96, 1056, team);
  Tensor<float, 2> all({100, 96}), one({1, 96});
  Product p{x.data(), w.data(), 100, 96, 1056, GetParam().packs, nullptr, all.data()};
  GetParam().multiply(p, team);
  p.rows = 1;
  p.out_float = one.data();
  for (int64_t t : {0, 15, 16, 31, 32, 63, 95, 96, 99}) {
    p.x = x.data() + t * 1056;
    GetParam().multiply(p, team);
    EXPECT_TRUE(Same(one.view()[0], all.view()[t])) << t;
  }
}

TEST(PackWeightsTest, OnlyShapesThatDoNotGrow) {
  EXPECT_TRUE(amx::CanPack(1536, 256));
  EXPECT_TRUE(amx::CanPack(32, 704));
  EXPECT_FALSE(amx::CanPack(48, 256));
  EXPECT_FALSE(amx::CanPack(64, 72));
}

}  // namespace
}  // namespace asynctls::testing
