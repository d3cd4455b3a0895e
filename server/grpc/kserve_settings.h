// SPDX-License-Identifier: Apache-2.0
// What a client may set beside the text, by the names of Triton's vLLM backend and of TensorRT-LLM:
// one table for tensors, parameters and the JSON of `sampling_parameters`. The table is in
// server/README.md.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "asynctls/v1/generation.pb.h"
#include "engine/base/json.h"

namespace asynctls {

// How the answers are to look.
struct InferOptions {
  std::string id, model, model_version;  // returned as given
  bool raw = false;                      // tensors as raw bytes, as they came
  bool stream = false;
  bool empty_final = false;  // a last response without outputs marks the end
  bool echo = false;         // the prompt in front of the text
  bool text_output = true;
  bool finish_reason = false;
  bool cumulative_logprob = false;
  bool num_input_tokens = false;
  bool num_output_tokens = false;
};

struct InferRequest {
  v1::GenerateRequest request;
  InferOptions options;
  absl::Duration timeout = absl::InfiniteDuration();
};

// One setting: a scalar, or a list where it takes one. Numbers and booleans may be strings; null
// changes nothing. Errors: INVALID_ARGUMENT naming the setting, its value and the limit;
// UNIMPLEMENTED for one that asks for what this server does not do.
absl::Status ApplySetting(const std::string& name, const Json& value, InferRequest& out);

// All of a JSON object.
absl::Status ApplySettings(const std::string& json, InferRequest& out);

// Whether the setting exists, and whether it takes a list.
bool IsSetting(const std::string& name);
bool TakesList(const std::string& name);

// A client's string in an error message: escaped, and not longer than some 60 characters.
std::string Quoted(absl::string_view text);

}  // namespace asynctls
