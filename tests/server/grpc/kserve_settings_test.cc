// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/frontend/errors.h"

namespace asynctls::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

InferRequest Applied(const std::string& json) {
  InferRequest out;
  const absl::Status status = ApplySettings(json, out);
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

TEST(ApplySettingsTest, EverySettingArrives) {
  const InferRequest out = Applied(R"({
      "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "presence_penalty": 1,
      "frequency_penalty": -1, "repetition_penalty": 1.5, "seed": 18446744073709551615, "n": 2,
      "logit_bias": {"3": -1.5}, "max_tokens": 9, "min_tokens": 2, "stop": ["a", "b"],
      "stop_token_ids": [4, 5], "ignore_eos": true, "include_stop_str_in_output": true,
      "skip_special_tokens": false, "cache_salt": "s", "stream": true,
      "return_finish_reason": true, "return_cumulative_logprob": true,
      "return_num_input_tokens": true, "return_num_output_tokens": true,
      "exclude_input_in_output": false, "timeout": 1500, "best_of": null})");
  const v1::Sampling& sampling = out.request.sampling();
  EXPECT_EQ(sampling.temperature(), 0.5f);
  EXPECT_EQ(sampling.top_p(), 0.25f);
  EXPECT_EQ(sampling.top_k(), 7);
  EXPECT_EQ(sampling.min_p(), 0.125f);
  EXPECT_EQ(sampling.presence_penalty(), 1);
  EXPECT_EQ(sampling.frequency_penalty(), -1);
  EXPECT_EQ(sampling.repetition_penalty(), 1.5f);
  EXPECT_EQ(sampling.seed(), UINT64_MAX);
  EXPECT_EQ(sampling.n(), 2u);
  EXPECT_EQ(sampling.logit_bias().at(3), -1.5f);
  const v1::Stopping& stopping = out.request.stopping();
  EXPECT_EQ(stopping.max_tokens(), 9u);
  EXPECT_EQ(stopping.min_tokens(), 2u);
  EXPECT_THAT(stopping.stop(), ElementsAre("a", "b"));
  EXPECT_THAT(stopping.stop_token_ids(), ElementsAre(4, 5));
  EXPECT_TRUE(stopping.ignore_eos());
  EXPECT_TRUE(stopping.include_stop());
  EXPECT_FALSE(out.request.response().skip_special_tokens());
  EXPECT_EQ(out.request.cache_salt(), "s");
  EXPECT_TRUE(out.options.stream);
  EXPECT_TRUE(out.options.echo);
  EXPECT_TRUE(out.options.finish_reason);
  EXPECT_TRUE(out.options.cumulative_logprob);
  EXPECT_TRUE(out.options.num_input_tokens);
  EXPECT_TRUE(out.options.num_output_tokens);
  EXPECT_EQ(out.timeout, absl::Microseconds(1500));
}

TEST(ApplySettingsTest, TensorRtNamesAreTheSame) {
  const InferRequest out = Applied(R"({"runtime_top_p": 0.5, "runtime_top_k": 3,
      "random_seed": 5, "min_length": 1, "stop_words": "x", "streaming": true,
      "num_return_sequences": 3, "bad_words": [""], "beam_width": 1, "len_penalty": 1.0})");
  EXPECT_EQ(out.request.sampling().top_p(), 0.5f);
  EXPECT_EQ(out.request.sampling().top_k(), 3);
  EXPECT_EQ(out.request.sampling().seed(), 5u);
  EXPECT_EQ(out.request.sampling().n(), 3u);
  EXPECT_EQ(out.request.stopping().min_tokens(), 1u);
  EXPECT_THAT(out.request.stopping().stop(), ElementsAre("x"));
  EXPECT_TRUE(out.options.stream);
}

TEST(ApplySettingsTest, NumbersMayBeStrings) {
  const InferRequest out = Applied(
      R"({"temperature": "0.1", "max_tokens": "100", "top_k": 5.0, "stream": "true", "seed": -2})");
  EXPECT_EQ(out.request.sampling().temperature(), 0.1f);
  EXPECT_EQ(out.request.stopping().max_tokens(), 100u);
  EXPECT_EQ(out.request.sampling().top_k(), 5);
  EXPECT_EQ(out.request.sampling().seed(), static_cast<uint64_t>(-2));
  EXPECT_TRUE(out.options.stream);
}

TEST(ApplySettingsTest, TheLastListWins) {
  InferRequest out = Applied(R"({"stop": "a"})");
  EXPECT_TRUE(ApplySetting("stop", {"b", "c"}, out).ok());
  EXPECT_THAT(out.request.stopping().stop(), ElementsAre("b", "c"));
}

struct Refusal {
  std::string json;
  absl::StatusCode code;
  std::string field;
  std::string message;
};

TEST(ApplySettingsTest, WhatIsNotUnderstoodIsRefusedByName) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto unimplemented = absl::StatusCode::kUnimplemented;
  const std::vector<Refusal> cases = {
      {"", invalid, "sampling_parameters", "sampling_parameters"},
      {"{", invalid, "sampling_parameters", "sampling_parameters"},
      {"[1]", invalid, "sampling_parameters", "not a JSON object"},
      {std::string(100000, '['), invalid, "sampling_parameters", "sampling_parameters"},
      {R"({"lora_name": "x"})", invalid, "lora_name", "'lora_name' is not understood"},
      {R"({"temperature": "warm"})", invalid, "temperature", "\"warm\" is not a number"},
      {R"({"temperature": [1]})", invalid, "temperature", "[1] is not a number"},
      {R"({"temperature": 1e300})", invalid, "temperature", "out of range"},
      {R"({"temperature": "inf"})", invalid, "temperature", "out of range"},
      {R"({"max_tokens": -1})", invalid, "max_tokens", "-1 is outside 0 to 4294967295"},
      {R"({"max_tokens": 4294967296})", invalid, "max_tokens", "outside"},
      {R"({"max_tokens": 1.5})", invalid, "max_tokens", "1.5 is not an integer"},
      {R"({"max_tokens": 1e19})", invalid, "max_tokens", "not an integer"},
      {R"({"max_tokens": true})", invalid, "max_tokens", "true is not an integer"},
      {R"({"max_tokens": 18446744073709551615})", invalid, "max_tokens", "not an integer in range"},
      {R"({"top_k": -2})", invalid, "top_k", "-2 is outside -1"},
      {R"({"n": 0})", invalid, "n", "0 is outside 1 to 16"},
      {R"({"n": 1000000})", invalid, "n", "outside"},
      {R"({"stream": 2})", invalid, "stream", "2 is not a boolean"},
      {R"({"stop": 3})", invalid, "stop", "3 is not a string"},
      {R"({"stop": [["a"]]})", invalid, "stop", "is not a string"},
      {R"({"stop_token_ids": [-1]})", invalid, "stop_token_ids", "outside"},
      {R"({"logit_bias": [1]})", invalid, "logit_bias", "not an object"},
      {R"({"logit_bias": {"x": 1}})", invalid, "logit_bias", "'x', which is no token id"},
      {R"({"logit_bias": {"1": "x"}})", invalid, "logit_bias", "not a number"},
      {R"({"cache_salt": 1})", invalid, "cache_salt", "not a string"},
      {R"({"timeout": -1})", invalid, "timeout", "outside"},
      {R"({"best_of": 2})", unimplemented, "", "best_of 2"},
      {R"({"use_beam_search": true})", unimplemented, "", "use_beam_search true"},
      {R"({"logprobs": 3})", unimplemented, "", "logprobs 3"},
      {R"({"return_logprobs": true})", unimplemented, "", "return_logprobs"},
      {R"({"priority": 7})", unimplemented, "", "priority 7"},
      {R"({"sequence_id": "abc"})", unimplemented, "", "sequence_id"},
      {R"({"bad_words": ["x"]})", unimplemented, "", "bad_words"},
  };
  for (const Refusal& refusal : cases) {
    InferRequest out;
    const absl::Status status = ApplySettings(refusal.json, out);
    EXPECT_EQ(status.code(), refusal.code) << refusal.json.substr(0, 60) << status;
    EXPECT_EQ(ErrorField(status), refusal.field) << refusal.json.substr(0, 60);
    EXPECT_THAT(std::string(status.message()), HasSubstr(refusal.message));
    EXPECT_LT(status.message().size(), 300u);
  }
}

TEST(ApplySettingsTest, NeutralValuesPass) {
  Applied(R"({"best_of": 1, "use_beam_search": false, "early_stopping": "False", "priority": 0,
              "sequence_id": 0, "sequence_start": false, "sequence_end": false, "logprobs": 0,
              "detokenize": true, "return_context_logits": false, "length_penalty": "1.0",
              "binary_data_output": true})");
}

TEST(SettingsTest, NamesAreKnown) {
  EXPECT_TRUE(IsSetting("top_p"));
  EXPECT_FALSE(IsSetting("text_input"));
  EXPECT_TRUE(TakesList("stop_words"));
  EXPECT_FALSE(TakesList("top_p"));
}

TEST(QuotedTest, IsShortAndPrintable) {
  EXPECT_EQ(Quoted("a\n"), "'a\\n'");
  EXPECT_LT(Quoted(std::string(1 << 20, '\1')).size(), 70u);
}

}  // namespace
}  // namespace asynctls::testing
