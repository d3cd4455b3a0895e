// SPDX-License-Identifier: Apache-2.0
// From the JSON of /v1/chat/completions, /v1/completions, /tokenize and /detokenize to asynctls.v1.
// Only what asynctls.v1 cannot say is checked here (types, unknown members, what is not supported);
// ranges are the front end's. Pure functions. Errors are FieldErrors.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "asynctls/v1/generation.pb.h"

namespace asynctls {

// Prompts of one completion request; each becomes a request of its own.
inline constexpr int kMaxPrompts = 16;

// What the answer is to look like.
struct OpenAiOptions {
  bool chat = false;
  bool stream = false;
  bool include_usage = false;        // of a stream; an answer in one piece always has it
  bool echo = false;                 // completions: the prompt comes first
  std::optional<uint32_t> logprobs;  // asked for, with this many alternatives
  bool prompt_logprobs = false;      // as a member of their own
  bool split_reasoning = false;      // chat: what is between <think> and </think>
};

struct OpenAiRequest {
  OpenAiOptions options;
  std::vector<std::shared_ptr<v1::GenerateRequest>> prompts;  // at least one; alike but for it
};

absl::StatusOr<OpenAiRequest> ParseChatRequest(const std::string& body);
absl::StatusOr<OpenAiRequest> ParseCompletionRequest(const std::string& body);

// vLLM's shapes. `model` may be empty; it is not checked here.
struct TokenizeCall {
  std::string model;
  v1::TokenizeRequest request;
  bool token_strings = false;
};
absl::StatusOr<TokenizeCall> ParseTokenizeRequest(const std::string& body);
struct DetokenizeCall {
  std::string model;
  v1::DetokenizeRequest request;
};
absl::StatusOr<DetokenizeCall> ParseDetokenizeRequest(const std::string& body);

}  // namespace asynctls
