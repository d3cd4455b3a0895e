// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "server/frontend/errors.h"
#include "tests/testing/infer_request.h"

namespace asynctls::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(FromInferRequestTest, TextAndParameters) {
  inference::ModelInferRequest in = InferTextRequest("once", 9);
  in.set_id("17");
  const auto out = FromInferRequest(in);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->request.text(), "once");
  EXPECT_EQ(out->request.model(), "fake");
  EXPECT_EQ(out->request.request_id(), "");  // ids of clients are not unique
  EXPECT_EQ(out->request.stopping().max_tokens(), 9u);
  EXPECT_EQ(out->request.sampling().temperature(), 0);
  EXPECT_EQ(out->options.id, "17");
  EXPECT_EQ(out->options.model_version, "1");
  EXPECT_FALSE(out->options.raw);
  EXPECT_FALSE(out->options.stream);
  EXPECT_TRUE(out->options.text_output);
  EXPECT_FALSE(out->options.echo);
  EXPECT_EQ(out->timeout, absl::InfiniteDuration());
}

// As tritonclient sends what the samples of vLLM's backend build.
TEST(FromInferRequestTest, RawTensors) {
  inference::ModelInferRequest in;
  in.set_model_name("fake");
  in.set_model_version("1");
  AddInput(in, "text_input", "BYTES");
  in.add_raw_input_contents(RawString("once"));
  AddInput(in, "stream", "BOOL");
  in.add_raw_input_contents(std::string(1, '\1'));
  AddInput(in, "max_tokens", "INT32");
  in.add_raw_input_contents(std::string("\x05\0\0\0", 4));
  AddInput(in, "sampling_parameters", "BYTES");
  in.add_raw_input_contents(RawString(R"({"temperature": "0.1", "max_tokens": "100"})"));
  AddInput(in, "stop_words", "BYTES").set_shape(0, 2);
  in.add_raw_input_contents(RawString("a") + RawString("b"));
  (*in.mutable_parameters())["temperature"].set_string_param("0.9");
  in.add_outputs()->set_name("finish_reason");
  const auto out = FromInferRequest(in);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->request.text(), "once");
  // A tensor wins over the JSON, which wins over parameters.
  EXPECT_EQ(out->request.stopping().max_tokens(), 5u);
  EXPECT_EQ(out->request.sampling().temperature(), 0.1f);
  EXPECT_THAT(out->request.stopping().stop(), ElementsAre("a", "b"));
  EXPECT_TRUE(out->options.raw);
  EXPECT_TRUE(out->options.stream);
  EXPECT_TRUE(out->options.finish_reason);
  EXPECT_FALSE(out->options.text_output);
}

TEST(FromInferRequestTest, AsksForWhatTheOutputsNeed) {
  inference::ModelInferRequest in = InferTextRequest("once", 9);
  (*in.mutable_parameters())["return_num_output_tokens"].set_bool_param(true);
  (*in.mutable_parameters())["return_cumulative_logprob"].set_bool_param(true);
  const auto out = FromInferRequest(in);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_TRUE(out->request.response().token_ids());
  EXPECT_TRUE(out->request.response().log_probs());
}

struct Refusal {
  absl::StatusCode code;
  std::string field;
  std::string message;
  std::function<void(inference::ModelInferRequest&)> spoil;
};

TEST(FromInferRequestTest, MalformedRequestsAreRefusedByName) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto unimplemented = absl::StatusCode::kUnimplemented;
  const auto parameter = [](inference::ModelInferRequest& r,
                            const std::string& name) -> inference::InferParameter& {
    return (*r.mutable_parameters())[name];
  };
  const std::vector<Refusal> cases = {
      {invalid, "id", "129 bytes", [](auto& r) { r.set_id(std::string(129, 'x')); }},
      {invalid, "model_name", "empty", [](auto& r) { r.clear_model_name(); }},
      {absl::StatusCode::kNotFound, "", "'2'", [](auto& r) { r.set_model_version("2"); }},
      {invalid, "text_input", "missing", [](auto& r) { r.clear_inputs(); }},
      {invalid,
       "text_input",
       "missing or empty",
       [](auto& r) { r.mutable_inputs(0)->mutable_contents()->set_bytes_contents(0, ""); }},
      {invalid,
       "text_input",
       "not UTF-8",
       [](auto& r) { r.mutable_inputs(0)->mutable_contents()->set_bytes_contents(0, "\xc3"); }},
      {invalid,
       "text_input",
       "one element",
       [](auto& r) {
         r.mutable_inputs(0)->set_shape(0, 2);
         r.mutable_inputs(0)->mutable_contents()->add_bytes_contents("twice");
       }},
      {invalid,
       "text_input",
       "datatype BYTES",
       [](auto& r) {
         r.mutable_inputs(0)->set_datatype("INT32");
         r.mutable_inputs(0)->mutable_contents()->clear_bytes_contents();
         r.mutable_inputs(0)->mutable_contents()->add_int_contents(1);
       }},
      {invalid, "text_input", "more than once", [](auto& r) { *r.add_inputs() = r.inputs(0); }},
      {invalid, "inputs", "'text_in'", [](auto& r) { r.mutable_inputs(0)->set_name("text_in"); }},
      {invalid,
       "inputs",
       "does not take",
       [](auto& r) { r.mutable_inputs(0)->set_name(std::string(1 << 16, 'x')); }},
      {unimplemented, "", "image", [](auto& r) { AddInput(r, "image", "BYTES"); }},
      {unimplemented,
       "",
       "'shared_memory_region'",
       [](auto& r) {
         (*r.mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_string_param("x");
       }},
      {invalid,
       "raw_input_contents",
       "2 elements for 1 inputs",
       [](auto& r) {
         r.add_raw_input_contents("a");
         r.add_raw_input_contents("b");
       }},
      {invalid, "outputs", "'logits'", [](auto& r) { r.add_outputs()->set_name("logits"); }},
      {unimplemented,
       "",
       "'classification' of output text_output",
       [](auto& r) {
         r.add_outputs()->set_name("text_output");
         (*r.mutable_outputs(0)->mutable_parameters())["classification"].set_int64_param(3);
       }},
      {invalid,
       "temp",
       "not understood",
       [&](auto& r) { parameter(r, "temp").set_int64_param(1); }},
      {invalid, "'top_p'", "has no value", [&](auto& r) { parameter(r, "top_p"); }},
      {invalid,
       "sampling_parameters",
       "must be a string",
       [&](auto& r) { parameter(r, "sampling_parameters").set_bool_param(true); }},
      {invalid,
       "exclude_input_in_output",
       "stream true",
       [&](auto& r) {
         parameter(r, "stream").set_bool_param(true);
         parameter(r, "exclude_input_in_output").set_bool_param(false);
       }},
  };
  for (const Refusal& refusal : cases) {
    inference::ModelInferRequest request = InferTextRequest("once", 4);
    refusal.spoil(request);
    const absl::Status status = FromInferRequest(request).status();
    EXPECT_EQ(status.code(), refusal.code) << refusal.message << status;
    EXPECT_EQ(ErrorField(status), refusal.field) << refusal.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(refusal.message));
    EXPECT_LT(status.message().size(), 300u);
  }
}

TEST(ToInferErrorTest, FieldsAreThoseOfTheProtocol) {
  const absl::Status status = ToInferError(InvalidField("sampling.top_p", " 2 is outside 0 to 1"));
  EXPECT_EQ(ErrorField(status), "top_p");
  EXPECT_EQ(status.message(), "top_p 2 is outside 0 to 1");
}

}  // namespace
}  // namespace asynctls::testing
