// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_settings.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>

#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/frontend/errors.h"
#include "server/frontend/request_checks.h"

namespace asynctls {
namespace {

std::string Shortened(const std::string& text) {
  return text.size() <= 64 ? text : text.substr(0, 61) + "...";
}

// ------------------------------------------------------------------------------------- values --
// A value as it came: as a typed parameter, in JSON, or, as many clients send them, as a string.

// For an error message.
std::string Show(const Json& value) {
  return Shortened(value.dump(-1, ' ', true, Json::error_handler_t::replace));
}

absl::Status ReadBool(const std::string& name, const Json& value, bool& out) {
  if (value.is_boolean()) {
    out = value.get<bool>();
    return absl::OkStatus();
  }
  if (value.is_string() && absl::SimpleAtob(value.get_ref<const std::string&>(), &out)) {
    return absl::OkStatus();
  }
  return InvalidField(name, " ", Show(value), " is not a boolean");
}

absl::Status ReadFloat(const std::string& name, const Json& value, float& out) {
  double number = 0;
  if (value.is_number()) {
    number = value.get<double>();
  } else if (!value.is_string() ||
             !absl::SimpleAtod(value.get_ref<const std::string&>(), &number)) {
    return InvalidField(name, " ", Show(value), " is not a number");
  }
  if (std::abs(number) > std::numeric_limits<float>::max()) {
    return InvalidField(name, " ", Show(value), " is out of range");
  }
  out = static_cast<float>(number);  // NaN is left to the checks of each field
  return absl::OkStatus();
}

absl::Status ReadInt(
    const std::string& name, const Json& value, int64_t low, int64_t high, int64_t& out) {
  bool read = false;
  if (value.is_number_unsigned()) {
    read = value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
    if (read) out = value.get<int64_t>();
  } else if (value.is_number_integer()) {
    out = value.get<int64_t>();
    read = true;
  } else if (value.is_number_float()) {
    const double number = value.get<double>();
    read = std::abs(number) < 9e15 && number == std::floor(number);
    if (read) out = static_cast<int64_t>(number);
  } else if (value.is_string()) {
    read = absl::SimpleAtoi(value.get_ref<const std::string&>(), &out);
  }
  if (!read) return InvalidField(name, " ", Show(value), " is not an integer in range");
  if (out < low || out > high) {
    return InvalidField(name, " ", out, " is outside ", low, " to ", high);
  }
  return absl::OkStatus();
}

absl::Status ReadSeed(const std::string& name, const Json& value, uint64_t& out) {
  if (value.is_number_unsigned()) {
    out = value.get<uint64_t>();
    return absl::OkStatus();
  }
  int64_t seed = 0;
  const absl::Status status = ReadInt(name, value, INT64_MIN, INT64_MAX, seed);
  out = static_cast<uint64_t>(seed);
  return status;
}

// -------------------------------------------------------------------------------------- setters --

using Setter = absl::Status (*)(const std::string& name, const Json& value, InferRequest& out);

template <void (v1::Sampling::*Set)(float)>
absl::Status SetFloat(const std::string& name, const Json& value, InferRequest& out) {
  float number = 0;
  const absl::Status status = ReadFloat(name, value, number);
  if (status.ok()) (out.request.mutable_sampling()->*Set)(number);
  return status;
}

template <void (v1::Stopping::*Set)(uint32_t)>
absl::Status SetCount(const std::string& name, const Json& value, InferRequest& out) {
  int64_t number = 0;
  const absl::Status status = ReadInt(name, value, 0, UINT32_MAX, number);
  if (status.ok()) (out.request.mutable_stopping()->*Set)(static_cast<uint32_t>(number));
  return status;
}

template <bool InferOptions::*Member>
absl::Status SetOption(const std::string& name, const Json& value, InferRequest& out) {
  return ReadBool(name, value, out.options.*Member);
}

absl::Status SetTopK(const std::string& name, const Json& value, InferRequest& out) {
  int64_t number = 0;
  const absl::Status status = ReadInt(name, value, -1, INT32_MAX, number);
  if (status.ok()) out.request.mutable_sampling()->set_top_k(static_cast<int32_t>(number));
  return status;
}

absl::Status SetN(const std::string& name, const Json& value, InferRequest& out) {
  int64_t number = 0;
  const absl::Status status = ReadInt(name, value, 1, kMaxSequences, number);
  if (status.ok()) out.request.mutable_sampling()->set_n(static_cast<uint32_t>(number));
  return status;
}

absl::Status SetSeed(const std::string& name, const Json& value, InferRequest& out) {
  uint64_t seed = 0;
  const absl::Status status = ReadSeed(name, value, seed);
  if (status.ok()) out.request.mutable_sampling()->set_seed(seed);
  return status;
}

absl::Status SetStop(const std::string& name, const Json& value, InferRequest& out) {
  const Json list = value.is_array() ? value : Json::array({value});
  out.request.mutable_stopping()->clear_stop();
  for (const Json& each : list) {
    if (!each.is_string()) return InvalidField(name, " ", Show(each), " is not a string");
    out.request.mutable_stopping()->add_stop(each.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status SetStopIds(const std::string& name, const Json& value, InferRequest& out) {
  const Json list = value.is_array() ? value : Json::array({value});
  out.request.mutable_stopping()->clear_stop_token_ids();
  for (const Json& each : list) {
    int64_t id = 0;
    const absl::Status status = ReadInt(name, each, 0, UINT32_MAX, id);
    if (!status.ok()) return status;
    out.request.mutable_stopping()->add_stop_token_ids(static_cast<uint32_t>(id));
  }
  return absl::OkStatus();
}

absl::Status SetLogitBias(const std::string& name, const Json& value, InferRequest& out) {
  if (!value.is_object()) return InvalidField(name, " ", Show(value), " is not an object");
  out.request.mutable_sampling()->clear_logit_bias();
  for (const auto& [key, bias] : value.items()) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(key, &id)) {
      return InvalidField(name, " names ", Quoted(key), ", which is no token id");
    }
    const absl::Status status =
        ReadFloat(name, bias, (*out.request.mutable_sampling()->mutable_logit_bias())[id]);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status SetIgnoreEos(const std::string& name, const Json& value, InferRequest& out) {
  bool on = false;
  const absl::Status status = ReadBool(name, value, on);
  out.request.mutable_stopping()->set_ignore_eos(on);
  return status;
}

absl::Status SetIncludeStop(const std::string& name, const Json& value, InferRequest& out) {
  bool on = false;
  const absl::Status status = ReadBool(name, value, on);
  out.request.mutable_stopping()->set_include_stop(on);
  return status;
}

absl::Status SetSkipSpecial(const std::string& name, const Json& value, InferRequest& out) {
  bool on = true;
  const absl::Status status = ReadBool(name, value, on);
  out.request.mutable_response()->set_skip_special_tokens(on);
  return status;
}

absl::Status SetExcludeInput(const std::string& name, const Json& value, InferRequest& out) {
  bool exclude = true;
  const absl::Status status = ReadBool(name, value, exclude);
  out.options.echo = !exclude;
  return status;
}

absl::Status SetSalt(const std::string& name, const Json& value, InferRequest& out) {
  if (!value.is_string()) return InvalidField(name, " ", Show(value), " is not a string");
  out.request.set_cache_salt(value.get<std::string>());
  return absl::OkStatus();
}

// In microseconds; 0 = none.
absl::Status SetTimeout(const std::string& name, const Json& value, InferRequest& out) {
  int64_t micros = 0;
  const absl::Status status = ReadInt(name, value, 0, INT64_MAX, micros);
  if (status.ok() && micros > 0) out.timeout = absl::Microseconds(micros);
  return status;
}

absl::Status Ignore(const std::string&, const Json&, InferRequest&) { return absl::OkStatus(); }

// Settings of what this server does not do pass at the value that changes nothing.
template <int kNeutral>
absl::Status Only(const std::string& name, const Json& value, InferRequest&) {
  bool on = !kNeutral;
  float number = NAN;
  if (value.is_boolean() || value == "true" || value == "false" || value == "True" ||
      value == "False") {
    if (ReadBool(name, value, on).ok() && on == (kNeutral != 0)) return absl::OkStatus();
  } else if (ReadFloat(name, value, number).ok() && number == kNeutral) {
    return absl::OkStatus();
  }
  return UnsupportedField(absl::StrCat(name, " ", Show(value)));
}

absl::Status OnlyEmpty(const std::string& name, const Json& value, InferRequest&) {
  const Json list = value.is_array() ? value : Json::array({value});
  for (const Json& each : list) {
    if (each != "") return UnsupportedField(absl::StrCat(name, " ", Show(value)));
  }
  return absl::OkStatus();
}

const std::map<absl::string_view, Setter>& Setters() {
  static const std::map<absl::string_view, Setter> setters = {
      {"temperature", SetFloat<&v1::Sampling::set_temperature>},
      {"top_p", SetFloat<&v1::Sampling::set_top_p>},
      {"runtime_top_p", SetFloat<&v1::Sampling::set_top_p>},
      {"top_k", SetTopK},
      {"runtime_top_k", SetTopK},
      {"min_p", SetFloat<&v1::Sampling::set_min_p>},
      {"presence_penalty", SetFloat<&v1::Sampling::set_presence_penalty>},
      {"frequency_penalty", SetFloat<&v1::Sampling::set_frequency_penalty>},
      {"repetition_penalty", SetFloat<&v1::Sampling::set_repetition_penalty>},
      {"seed", SetSeed},
      {"random_seed", SetSeed},
      {"n", SetN},
      {"num_return_sequences", SetN},
      {"logit_bias", SetLogitBias},
      {"max_tokens", SetCount<&v1::Stopping::set_max_tokens>},
      {"min_tokens", SetCount<&v1::Stopping::set_min_tokens>},
      {"min_length", SetCount<&v1::Stopping::set_min_tokens>},
      {"stop", SetStop},
      {"stop_words", SetStop},
      {"stop_token_ids", SetStopIds},
      {"ignore_eos", SetIgnoreEos},
      {"include_stop_str_in_output", SetIncludeStop},
      {"skip_special_tokens", SetSkipSpecial},
      {"cache_salt", SetSalt},
      {"stream", SetOption<&InferOptions::stream>},
      {"streaming", SetOption<&InferOptions::stream>},
      {"exclude_input_in_output", SetExcludeInput},
      {"return_finish_reason", SetOption<&InferOptions::finish_reason>},
      {"return_cumulative_logprob", SetOption<&InferOptions::cumulative_logprob>},
      {"return_num_input_tokens", SetOption<&InferOptions::num_input_tokens>},
      {"return_num_output_tokens", SetOption<&InferOptions::num_output_tokens>},
      {"triton_enable_empty_final_response", SetOption<&InferOptions::empty_final>},
      {"timeout", SetTimeout},
      {"binary_data_output", Ignore},             // HTTP's
      {"spaces_between_special_tokens", Ignore},  // our detokenizer puts none
      {"priority", Only<0>},
      {"sequence_id", Only<0>},
      {"sequence_start", Only<0>},
      {"sequence_end", Only<0>},
      {"beam_width", Only<1>},
      {"best_of", Only<1>},
      {"use_beam_search", Only<0>},
      {"early_stopping", Only<0>},
      {"length_penalty", Only<1>},
      {"len_penalty", Only<1>},
      {"logprobs", Only<0>},
      {"prompt_logprobs", Only<0>},
      {"return_logprobs", Only<0>},
      {"return_log_probs", Only<0>},
      {"return_context_logits", Only<0>},
      {"return_generation_logits", Only<0>},
      {"detokenize", Only<1>},
      {"bad_words", OnlyEmpty},
  };
  return setters;
}

}  // namespace

std::string Quoted(absl::string_view text) {
  return absl::StrCat("'", Shortened(absl::CHexEscape(text.substr(0, 64))), "'");
}

bool IsSetting(const std::string& name) { return Setters().contains(name); }

bool TakesList(const std::string& name) {
  return name == "stop" || name == "stop_words" || name == "stop_token_ids" || name == "bad_words";
}

absl::Status ApplySetting(const std::string& name, const Json& value, InferRequest& out) {
  if (value.is_null()) return absl::OkStatus();
  const auto setter = Setters().find(name);
  if (setter == Setters().end()) {
    return FieldError(name.substr(0, 64),
                      absl::StrCat(Quoted(name), " is not understood by this model"));
  }
  return setter->second(name, value, out);
}

absl::Status ApplySettings(const std::string& json, InferRequest& out) {
  const absl::StatusOr<Json> settings = ParseJson(json, "sampling_parameters");
  if (!settings.ok()) {
    return FieldError("sampling_parameters", std::string(settings.status().message()));
  }
  if (!settings->is_object()) return InvalidField("sampling_parameters", " is not a JSON object");
  for (const auto& [name, value] : settings->items()) {
    const absl::Status status = ApplySetting(name, value, out);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace asynctls
