// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_request.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/json.h"
#include "server/frontend/errors.h"
#include "server/grpc/kserve_tensor.h"

namespace asynctls {
namespace {

constexpr std::pair<absl::string_view, absl::string_view> kFields[] = {
    {"sampling.", ""},
    {"stopping.", ""},
    {"response.", ""},
    {"prompt", "text_input"},
};

// sampling_parameters first, the others by name: the order is always the same.
absl::Status ReadParameters(const inference::ModelInferRequest& in, InferRequest& out) {
  std::map<absl::string_view, const inference::InferParameter*> sorted;
  for (const auto& [name, parameter] : in.parameters()) {
    if (name != "sampling_parameters") {
      sorted.emplace(name, &parameter);
    } else if (parameter.has_string_param()) {
      const absl::Status status = ApplySettings(parameter.string_param(), out);
      if (!status.ok()) return status;
    } else {
      return InvalidField(name, " must be a string");
    }
  }
  for (const auto& [name, parameter] : sorted) {
    const absl::StatusOr<Json> value = ReadParameter(Quoted(name), *parameter);
    if (!value.ok()) return value.status();
    const absl::Status status = ApplySetting(std::string(name), *value, out);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadTensorInto(const std::string& name, const Json& values, InferRequest& out) {
  if (name != "text_input" && name != "sampling_parameters") {
    const bool list = TakesList(name) || values.size() != 1;
    return ApplySetting(name, list ? values : values[0], out);
  }
  if (values.size() != 1 || !values[0].is_string()) {
    return InvalidField(name, " must be one element of datatype BYTES");
  }
  if (name == "sampling_parameters") return ApplySettings(values[0].get<std::string>(), out);
  out.request.set_text(values[0].get<std::string>());
  return absl::OkStatus();
}

absl::Status ReadTensors(const inference::ModelInferRequest& in, InferRequest& out) {
  if (!in.raw_input_contents().empty() && in.raw_input_contents_size() != in.inputs_size()) {
    return InvalidField("raw_input_contents",
                        " has ",
                        in.raw_input_contents_size(),
                        " elements for ",
                        in.inputs_size(),
                        " inputs");
  }
  absl::flat_hash_set<std::string> seen;
  std::vector<std::pair<std::string, Json>> own;
  for (int i = 0; i < in.inputs_size(); ++i) {
    const std::string& name = in.inputs(i).name();
    if (name == "image") return UnsupportedField("image");
    if (name != "text_input" && name != "sampling_parameters" && !IsSetting(name)) {
      return InvalidField("inputs", " names ", Quoted(name), ", which this model does not take");
    }
    if (!seen.insert(name).second) return InvalidField(name, " is there more than once");
    if (!in.inputs(i).parameters().empty()) {
      return UnsupportedField(absl::StrCat(
          "parameter ", Quoted(in.inputs(i).parameters().begin()->first), " of input ", name));
    }
    const absl::StatusOr<Json> values = ReadTensor(in, i);
    if (!values.ok()) return values.status();
    if (name == "sampling_parameters") {
      const absl::Status status = ReadTensorInto(name, *values, out);
      if (!status.ok()) return status;
    } else {
      own.emplace_back(name, *values);
    }
  }
  for (const auto& [name, values] : own) {  // win over sampling_parameters
    const absl::Status status = ReadTensorInto(name, values, out);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadOutputs(const inference::ModelInferRequest& in, InferOptions& out) {
  if (in.outputs().empty()) return absl::OkStatus();
  out.text_output = false;
  const std::map<std::string, bool*> outputs = {{"text_output", &out.text_output},
                                                {"finish_reason", &out.finish_reason},
                                                {"cumulative_logprob", &out.cumulative_logprob},
                                                {"num_input_tokens", &out.num_input_tokens},
                                                {"num_output_tokens", &out.num_output_tokens}};
  for (const auto& output : in.outputs()) {
    const auto found = outputs.find(output.name());
    if (found == outputs.end()) {
      return InvalidField(
          "outputs", " names ", Quoted(output.name()), ", which this model does not give");
    }
    if (!output.parameters().empty()) {
      return UnsupportedField(absl::StrCat(
          "parameter ", Quoted(output.parameters().begin()->first), " of output ", output.name()));
    }
    *found->second = true;
  }
  return absl::OkStatus();
}

absl::Status CheckIdentity(const inference::ModelInferRequest& in) {
  if (in.id().size() > kMaxInferIdBytes) {
    return InvalidField("id", " has ", in.id().size(), " bytes; the limit is ", kMaxInferIdBytes);
  }
  if (in.model_name().empty()) return InvalidField("model_name", " is empty");
  if (!in.model_version().empty() && in.model_version() != kModelVersion) {
    return WithReason(absl::NotFoundError(absl::StrCat("model_version ",
                                                       Quoted(in.model_version()),
                                                       " is not served; '",
                                                       kModelVersion,
                                                       "' is")),
                      "MODEL_NOT_FOUND");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<InferRequest> FromInferRequest(const inference::ModelInferRequest& in) {
  InferRequest out;
  absl::Status status = CheckIdentity(in);
  if (status.ok()) status = ReadParameters(in, out);
  if (status.ok()) status = ReadTensors(in, out);
  if (status.ok()) status = ReadOutputs(in, out.options);
  if (!status.ok()) return status;
  if (out.request.text().empty()) return InvalidField("text_input", " is missing or empty");
  if (out.options.echo && out.options.stream) {
    return InvalidField("exclude_input_in_output", " false and stream true exclude each other");
  }
  out.request.set_model(in.model_name());
  v1::ResponseOptions& response = *out.request.mutable_response();
  response.set_token_ids(out.options.num_output_tokens);
  response.set_log_probs(out.options.cumulative_logprob);
  out.options.id = in.id();
  out.options.model = in.model_name();
  out.options.model_version = in.model_version().empty() ? kModelVersion : in.model_version();
  out.options.raw = !in.raw_input_contents().empty();
  return out;
}

absl::Status ToInferError(const absl::Status& status) { return RenameFields(status, kFields); }

}  // namespace asynctls
