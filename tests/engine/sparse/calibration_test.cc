// SPDX-License-Identifier: Apache-2.0
// The tables keep q . k, are the same every time, survive their file, and bad files are refused.
#include "engine/sparse/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>

#include "engine/base/safetensors.h"
#include "kernels/ref/exact.h"
#include "kernels/ref/ref_ops.h"

namespace asynctls {
namespace {

using ::testing::HasSubstr;

constexpr int kD = 64, kRows = 600;
const KeyCodeShape kShape{.layers = 2, .groups = 2, .head_dim = kD, .channels = 32};

// Vectors of `rank` random directions plus a mean and a little noise.
std::vector<bf16> LowRank(int rank, float noise, float mean, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> basis(static_cast<size_t>(rank * kD));
  for (float& x : basis) x = normal(random);
  std::vector<bf16> out;
  for (int t = 0; t < kRows; ++t) {
    std::vector<float> x(kD);
    for (int j = 0; j < rank; ++j) {
      const float a = normal(random) / static_cast<float>(1 + j);
      for (int d = 0; d < kD; ++d) x[d] += a * basis[j * kD + d];
    }
    for (int d = 0; d < kD; ++d) {
      out.push_back(ToBf16(x[d] + noise * normal(random) + mean * static_cast<float>(d % 5)));
    }
  }
  return out;
}

struct Data {
  std::vector<bf16> queries = LowRank(20, 0.05f, 0.1f, 1), keys = LowRank(20, 0.05f, 1.0f, 2);
};

void Fill(Calibrator& calibrator, const Data& data) {
  RefOps ops;
  for (int layer = 0; layer < kShape.layers; ++layer) {
    for (int g = 0; g < kShape.groups; ++g) {
      // Other heads see other parts, so that mixing them up shows.
      const int64_t first = 100 * (layer + 2 * g), count = kRows - first;
      ops.Moments(calibrator.Queries(layer, g, data.queries.data() + first * kD, count, kD));
      ops.Moments(calibrator.Keys(layer, g, data.keys.data() + first * kD, count, kD));
    }
  }
}

KeyCodeTables MakeTables() {
  Calibrator calibrator = *Calibrator::Create(kShape, MemoryKind::kHost);
  Fill(calibrator, Data());
  return calibrator.Finish("model-x", "a test").value();
}

void ExpectEqual(KeyCodeTables& a, KeyCodeTables& b) {
  for (int layer = 0; layer < kShape.layers; ++layer) {
    const auto same = [](auto x, auto y) { return std::equal(x.data, x.data + x.size(), y.data); };
    EXPECT_TRUE(same(a.encode(layer), b.encode(layer)));
    EXPECT_TRUE(same(a.offset(layer), b.offset(layer)));
    EXPECT_TRUE(same(a.turn(layer), b.turn(layer)));
    EXPECT_TRUE(same(a.channels(layer), b.channels(layer)));
  }
}

// Correlation of q . k with the code's approximation from the first r of its directions.
double Correlation(const KeyCodeTable& table, const Data& data, int r) {
  const int all = static_cast<int>(table.encode.dim(2));
  std::vector<float> x(kD), turned(all);
  std::vector<uint8_t> code(all);
  double sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0;
  int n = 0;
  for (int i = 0; i < 20; ++i) {
    for (int d = 0; d < kD; ++d) x[d] = ToFloat(data.queries[i * kD + d]);
    for (int c = 0; c < all; ++c) turned[c] = ExactProduct(x.data(), table.turn.data + c, all, kD);
    const std::vector<float> q = x;
    for (int k = 0; k < kRows; ++k) {
      double exact = 0, approximate = 0;
      for (int d = 0; d < kD; ++d) {
        x[d] = ToFloat(data.keys[k * kD + d]);
        exact += q[d] * x[d];
      }
      EncodeKey(x.data(), table, 0, code.data());
      for (int c = 0; c < r; ++c) approximate += turned[c] * (code[c] - 7.5);
      sx += exact, sy += approximate, sxx += exact * exact, syy += approximate * approximate;
      sxy += exact * approximate, ++n;
    }
  }
  return (sxy - sx * sy / n) / std::sqrt((sxx - sx * sx / n) * (syy - sy * sy / n));
}

TEST(CalibrationTest, CodesKeepTheProducts) {
  // Keys without a mean, so that one correlation over all queries makes sense.
  Data data;
  data.keys = LowRank(20, 0.05f, 0.0f, 2);
  Calibrator calibrator = *Calibrator::Create(kShape, MemoryKind::kHost);
  Fill(calibrator, data);
  const KeyCodeTables tables = calibrator.Finish("m", "s").value();
  const double few = Correlation(tables.table(0), data, 4);
  const double first = Correlation(tables.table(0), data, 16);
  const double all = Correlation(tables.table(0), data, 32);
  EXPECT_GT(first, 0.985);
  EXPECT_GT(all, 0.99);
  EXPECT_LT(few, first);
}

TEST(CalibrationTest, CodesOfTheCalibratedKeysUseTheirLevels) {
  const Data data;
  const KeyCodeTables tables = MakeTables();
  std::vector<float> key(kD);
  std::vector<uint8_t> code(32);
  double mean = 0, square = 0;
  for (int k = 0; k < kRows; ++k) {
    for (int d = 0; d < kD; ++d) key[d] = ToFloat(data.keys[k * kD + d]);
    EncodeKey(key.data(), tables.table(0), 0, code.data());
    mean += code[0] - 7.5;
    square += (code[0] - 7.5) * (code[0] - 7.5);
  }
  mean /= kRows;
  EXPECT_NEAR(mean, 0.0, 0.3);                                      // the offset centres
  EXPECT_NEAR(std::sqrt(square / kRows - mean * mean), 2.98, 0.3);  // 1 / 0.335 steps
}

TEST(CalibrationTest, ChannelsAreTheHeaviest) {
  Data data;
  for (int t = 0; t < kRows; ++t) {
    for (int d = 0; d < kD; ++d) {
      if (d % 2 == 1) data.keys[t * kD + d] = ToBf16(1e-3f * ToFloat(data.keys[t * kD + d]));
    }
  }
  Calibrator calibrator = *Calibrator::Create(kShape, MemoryKind::kHost);
  Fill(calibrator, data);
  const KeyCodeTables tables = calibrator.Finish("m", "s").value();
  for (int i = 0; i < 32; ++i) EXPECT_EQ(tables.channels(1)(1, i), 2 * i);
}

TEST(CalibrationTest, Deterministic) {
  KeyCodeTables a = MakeTables(), b = MakeTables();
  ExpectEqual(a, b);
}

TEST(CalibrationTest, NoTokensOrNotFiniteIsAnError) {
  Calibrator empty = *Calibrator::Create(kShape, MemoryKind::kHost);
  EXPECT_THAT(std::string(empty.Finish("m", "s").status().message()),
              HasSubstr("layer 0, KV head 0 saw no tokens"));
  Data data;
  data.keys[kD * 590] = ToBf16(std::numeric_limits<float>::infinity());
  Calibrator bad = *Calibrator::Create(kShape, MemoryKind::kHost);
  Fill(bad, data);
  EXPECT_EQ(bad.Finish("m", "s").status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(CalibrationTest, ConstantKeysAndZeroQueriesGiveFiniteTables) {
  Data data;
  for (bf16& x : data.keys) x = ToBf16(0.5f);
  for (bf16& x : data.queries) x = ToBf16(0.0f);
  Calibrator calibrator = *Calibrator::Create(kShape, MemoryKind::kHost);
  Fill(calibrator, data);
  KeyCodeTables tables = calibrator.Finish("m", "s").value();
  for (int64_t i = 0; i < tables.encode(0).size(); ++i) {
    ASSERT_TRUE(std::isfinite(tables.encode(0).data[i]));
    ASSERT_TRUE(std::isfinite(tables.turn(0).data[i]));
  }
}

TEST(CalibrationTest, SliceTakesHeads) {
  KeyCodeTables all = MakeTables(), second = all.Slice(1, 1);
  EXPECT_EQ(second.shape().groups, 1);
  EXPECT_EQ(second.encode(1)(0, 5, 7), all.encode(1)(1, 5, 7));
  EXPECT_EQ(second.offset(0)(0, 31), all.offset(0)(1, 31));
  EXPECT_EQ(second.channels(1)(0, 3), all.channels(1)(1, 3));
}

class CalibrationFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "/key_codes_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_TRUE(tables_.Write(path_).ok());
  }
  void TearDown() override { std::filesystem::remove(path_); }
  void ExpectRefused(const std::string& part,
                     const KeyCodeShape& shape = kShape,
                     const std::string& model = "model-x") {
    const absl::Status s = KeyCodeTables::Read(path_, shape, model).status();
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(s.message()), HasSubstr(part));
    EXPECT_THAT(std::string(s.message()), HasSubstr(path_));
  }

  KeyCodeTables tables_ = MakeTables();
  std::string path_;
};

TEST_F(CalibrationFileTest, RoundTrip) {
  auto read = KeyCodeTables::Read(path_, kShape, "model-x");
  ASSERT_TRUE(read.ok()) << read.status();
  ExpectEqual(tables_, *read);
  EXPECT_EQ(read->source(), "a test");
  EXPECT_EQ(read->model(), "model-x");
}

TEST_F(CalibrationFileTest, AnotherModelOrShapeIsRefused) {
  ExpectRefused("metadata model is 'model-x', expected 'model-y'", kShape, "model-y");
  KeyCodeShape other = kShape;
  other.layers = 3;
  ExpectRefused("8 tensors, expected 4 for each of 3 layers", other);
  other = kShape;
  other.head_dim = 128;
  ExpectRefused("tensor layers.0.encode is F32[2,64,32], expected F32[2,128,32]", other);
}

TEST_F(CalibrationFileTest, ValuesThatCannotBeAreRefused) {
  tables_.turn(1)(1, 3, 4) = std::nanf("");
  ASSERT_TRUE(tables_.Write(path_).ok());
  ExpectRefused("tensor layers.1.turn has a value that is not finite");
  tables_.turn(1)(1, 3, 4) = 0.0f;
  tables_.channels(0)(1, 0) = 64;
  ASSERT_TRUE(tables_.Write(path_).ok());
  ExpectRefused("tensor layers.0.channels has channel 64, limit 63");
}

TEST_F(CalibrationFileTest, CorruptFilesAreRefused) {
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - 10);
  ExpectRefused("");
  std::filesystem::resize_file(path_, 5);
  ExpectRefused("");
  std::ofstream(path_) << "this is not a safetensors file, not at all";
  ExpectRefused("");
  EXPECT_EQ(KeyCodeTables::Read(path_ + ".none", kShape, "model-x").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace asynctls
