// SPDX-License-Identifier: Apache-2.0
// Requests of the Open Inference Protocol as its clients send them.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "inference/grpc_service.pb.h"

namespace asynctls::testing {

inline inference::ModelInferRequest::InferInputTensor& AddInput(
    inference::ModelInferRequest& request, const std::string& name, const std::string& datatype) {
  auto& input = *request.add_inputs();
  input.set_name(name);
  input.set_datatype(datatype);
  input.add_shape(1);
  return input;
}

inline inference::ModelInferRequest InferTextRequest(const std::string& text, int64_t max_tokens) {
  inference::ModelInferRequest request;
  request.set_model_name("fake");
  AddInput(request, "text_input", "BYTES").mutable_contents()->add_bytes_contents(text);
  (*request.mutable_parameters())["max_tokens"].set_int64_param(max_tokens);
  (*request.mutable_parameters())["temperature"].set_double_param(0);
  return request;
}

inline std::string RawString(const std::string& text) {
  const auto size = static_cast<uint32_t>(text.size());
  return std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + text;
}

// The strings of an output, however it is encoded; empty where there is no such output.
inline std::vector<std::string> OutputStrings(const inference::ModelInferResponse& response,
                                              const std::string& name) {
  std::vector<std::string> out;
  for (int i = 0; i < response.outputs_size(); ++i) {
    if (response.outputs(i).name() != name) continue;
    const auto& contents = response.outputs(i).contents().bytes_contents();
    out.assign(contents.begin(), contents.end());
    if (i >= response.raw_output_contents_size()) break;
    const std::string& raw = response.raw_output_contents(i);
    for (size_t at = 0; at + 4 <= raw.size();) {
      uint32_t size;
      std::memcpy(&size, raw.data() + at, sizeof(size));
      out.push_back(raw.substr(at + 4, size));
      at += 4 + size;
    }
  }
  return out;
}

inline bool IsFinal(const inference::ModelInferResponse& response) {
  const auto found = response.parameters().find("triton_final_response");
  return found != response.parameters().end() && found->second.bool_param();
}

}  // namespace asynctls::testing
