// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "server/frontend/errors.h"
#include "tests/testing/infer_request.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;

// The bytes of little-endian numbers.
template <class T>
std::string Bytes(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

struct Readable {
  std::string datatype;
  std::string raw;
  std::function<void(inference::InferTensorContents&)> contents;
  Json expected;
};

TEST(ReadTensorTest, BothEncodingsOfEveryType) {
  const std::vector<Readable> cases = {
      {"BOOL",
       std::string("\x01\x00", 2),
       [](auto& c) { c.add_bool_contents(true), c.add_bool_contents(false); },
       {true, false}},
      {"INT8",
       Bytes<int8_t>({-3, 4}),
       [](auto& c) { c.add_int_contents(-3), c.add_int_contents(4); },
       {-3, 4}},
      {"UINT8",
       Bytes<uint8_t>({250, 4}),
       [](auto& c) { c.add_uint_contents(250), c.add_uint_contents(4); },
       {250, 4}},
      {"INT16",
       Bytes<int16_t>({-300, 4}),
       [](auto& c) { c.add_int_contents(-300), c.add_int_contents(4); },
       {-300, 4}},
      {"UINT16",
       Bytes<uint16_t>({65000, 4}),
       [](auto& c) { c.add_uint_contents(65000), c.add_uint_contents(4); },
       {65000, 4}},
      {"INT32",
       Bytes<int32_t>({INT32_MIN, 4}),
       [](auto& c) { c.add_int_contents(INT32_MIN), c.add_int_contents(4); },
       {INT32_MIN, 4}},
      {"UINT32",
       Bytes<uint32_t>({UINT32_MAX, 4}),
       [](auto& c) { c.add_uint_contents(UINT32_MAX), c.add_uint_contents(4); },
       {UINT32_MAX, 4}},
      {"INT64",
       Bytes<int64_t>({INT64_MIN, 4}),
       [](auto& c) { c.add_int64_contents(INT64_MIN), c.add_int64_contents(4); },
       {INT64_MIN, 4}},
      {"UINT64",
       Bytes<uint64_t>({UINT64_MAX, 4}),
       [](auto& c) { c.add_uint64_contents(UINT64_MAX), c.add_uint64_contents(4); },
       {UINT64_MAX, 4}},
      {"FP32",
       Bytes<float>({0.5f, 4}),
       [](auto& c) { c.add_fp32_contents(0.5f), c.add_fp32_contents(4); },
       {0.5, 4.0}},
      {"FP64",
       Bytes<double>({0.25, 4}),
       [](auto& c) { c.add_fp64_contents(0.25), c.add_fp64_contents(4); },
       {0.25, 4.0}},
      {"BYTES",
       RawString("h\xc3\xa9") + RawString(""),
       [](auto& c) { c.add_bytes_contents("h\xc3\xa9"), c.add_bytes_contents(""); },
       {"h\xc3\xa9", ""}},
  };
  for (const Readable& readable : cases) {
    inference::ModelInferRequest request;
    auto& input = AddInput(request, "x", readable.datatype);
    input.set_shape(0, 2);
    readable.contents(*input.mutable_contents());
    const auto contents = ReadTensor(request, 0);
    ASSERT_TRUE(contents.ok()) << contents.status();
    EXPECT_EQ(*contents, readable.expected) << readable.datatype;
    input.clear_contents();
    input.set_shape(0, 1);
    input.add_shape(2);
    request.add_raw_input_contents(readable.raw);
    const auto raw = ReadTensor(request, 0);
    ASSERT_TRUE(raw.ok()) << raw.status();
    EXPECT_EQ(*raw, readable.expected) << readable.datatype;
  }
}

struct Broken {
  std::string message;
  std::string datatype;
  std::vector<int64_t> shape;
  std::string raw;
};

TEST(ReadTensorTest, BrokenTensorsAreRefusedByName) {
  const std::vector<Broken> cases = {
      {"datatype 'FP16'", "FP16", {1}, "ab"},
      {"datatype ''", "", {1}, "ab"},
      {"1 to 1024 elements", "INT32", {-1}, "abcd"},
      {"1 to 1024 elements", "INT32", {0}, ""},
      {"1 to 1024 elements", "INT32", {1 << 20, 1 << 20, 1 << 20}, "abcd"},
      {"1 to 1024 elements", "INT32", {INT64_MAX, INT64_MAX}, "abcd"},
      {"fit no shape", "INT32", {1}, "abc"},
      {"fit no shape", "BOOL", {1}, std::string(2000, '\0')},
      {"has 2 elements, the tensor 1", "INT32", {2}, "abcd"},
      {"end within a string", "BYTES", {1}, "abc"},
      {"end within a string", "BYTES", {1}, std::string("\xff\xff\xff\xff\x61", 5)},
      {"more than 1024 elements", "BYTES", {1}, std::string(5000, '\0')},
      {"not UTF-8 at byte 1", "BYTES", {1}, RawString("a\xff")},
  };
  for (const Broken& broken : cases) {
    inference::ModelInferRequest request;
    auto& input = AddInput(request, "x", broken.datatype);
    input.mutable_shape()->Assign(broken.shape.begin(), broken.shape.end());
    request.add_raw_input_contents(broken.raw);
    const absl::Status status = ReadTensor(request, 0).status();
    EXPECT_EQ(ErrorField(status), "x") << broken.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(broken.message));
  }
}

TEST(ReadTensorTest, ContentsMustMatchShapeAndEncoding) {
  inference::ModelInferRequest request;
  auto& input = AddInput(request, "x", "INT32");
  input.mutable_contents()->add_int_contents(1);
  input.mutable_contents()->add_fp32_contents(1);
  EXPECT_EQ(ErrorField(ReadTensor(request, 0).status()), "x");  // two kinds
  input.mutable_contents()->clear_int_contents();
  EXPECT_EQ(ErrorField(ReadTensor(request, 0).status()), "x");  // the wrong kind
  request.add_raw_input_contents("abcd");
  EXPECT_THAT(std::string(ReadTensor(request, 0).status().message()),
              HasSubstr("contents beside raw_input_contents"));
}

TEST(ReadParameterTest, EveryKindAndNone) {
  inference::InferParameter parameter;
  EXPECT_EQ(ErrorField(ReadParameter("x", parameter).status()), "x");
  parameter.set_bool_param(true);
  EXPECT_EQ(*ReadParameter("x", parameter), Json(true));
  parameter.set_int64_param(-1);
  EXPECT_EQ(*ReadParameter("x", parameter), Json(-1));
  parameter.set_uint64_param(UINT64_MAX);
  EXPECT_EQ(*ReadParameter("x", parameter), Json(UINT64_MAX));
  parameter.set_double_param(0.5);
  EXPECT_EQ(*ReadParameter("x", parameter), Json(0.5));
  parameter.set_string_param("s");
  EXPECT_EQ(*ReadParameter("x", parameter), Json("s"));
}

TEST(AddOutputsTest, BothEncodings) {
  inference::ModelInferResponse raw, contents;
  for (auto* out : {&raw, &contents}) {
    AddStrings("s", {"ab", ""}, out == &raw, *out);
    AddFloats("f", {0.5f}, out == &raw, *out);
    AddUints("u", {7}, out == &raw, *out);
    ASSERT_EQ(out->outputs_size(), 3);
    EXPECT_EQ(out->outputs(0).datatype(), "BYTES");
    EXPECT_EQ(out->outputs(0).shape(0), 2);
    EXPECT_EQ(out->outputs(1).datatype(), "FP32");
    EXPECT_EQ(out->outputs(2).datatype(), "UINT32");
    EXPECT_EQ(OutputStrings(*out, "s"), (std::vector<std::string>{"ab", ""}));
  }
  EXPECT_EQ(contents.raw_output_contents_size(), 0);
  EXPECT_EQ(contents.outputs(1).contents().fp32_contents(0), 0.5f);
  EXPECT_EQ(contents.outputs(2).contents().uint_contents(0), 7u);
  EXPECT_EQ(raw.raw_output_contents(1), Bytes<float>({0.5f}));
  EXPECT_EQ(raw.raw_output_contents(2), Bytes<uint32_t>({7}));
  EXPECT_FALSE(raw.outputs(0).has_contents());
}

}  // namespace
}  // namespace asynctls::testing
