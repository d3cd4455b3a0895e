// SPDX-License-Identifier: Apache-2.0
// From GenerateRequest to Request: every bound checked, every absent field resolved. Pure
// functions; what needs no token ids comes first so that a bad request costs no tokenizing.
// Errors are INVALID_ARGUMENT and name the field, its value and the limit, or NOT_FOUND for another
// model's name.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "asynctls/v1/generation.pb.h"
#include "engine/scheduler/request.h"

namespace asynctls {

// What requests are held against. Constant after startup.
struct ServingLimits {
  v1::ModelInfo model;         // sampling defaults, end tokens
  uint32_t vocab = 0;          // ids below this are accepted
  v1::SparseParams sparse;     // defaults, complete
  uint32_t max_positions = 0;  // prompt and reply together: the context, or what KV memory holds
  uint32_t max_budget = 0;
  bool bound_selector = false;
};

inline constexpr int kMaxRequestIdBytes = 128;
inline constexpr int kMaxModelNameBytes = 256;
inline constexpr int kMaxCacheSaltBytes = 256;
inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopStringBytes = 256;
inline constexpr int kMaxStopTokens = 128;
inline constexpr int kMaxChatMessages = 4096;
inline constexpr int kMaxLogitBiases = 1024;
inline constexpr int kMaxTopLogProbs = 20;
inline constexpr uint32_t kMaxSequences = 16;  // of one request
inline constexpr uint32_t kMinBudget = 128;
inline constexpr uint32_t kMinBlocks = 4;
inline constexpr uint32_t kMaxTail = 4096;
// Temperatures below this mean greedy: dividing by them would overflow.
inline constexpr float kMinTemperature = 1e-5f;
// max_tokens of a request that names none, where the context leaves room for it.
inline constexpr uint32_t kDefaultMaxTokens = 4096;

// How many sequences a request that was resolved asks for.
uint32_t SequenceCount(const v1::Sampling& sampling);

// Everything but the prompt's ids and max_tokens. id and seed stay as given: the caller fills
// them in where `request` has none.
absl::StatusOr<Request> ResolveRequest(const v1::GenerateRequest& request,
                                       const ServingLimits& limits);

// The prompt's ids, and what depends on their number: max_tokens, tail.
absl::Status ResolvePrompt(const v1::GenerateRequest& request,
                           const ServingLimits& limits,
                           std::vector<uint32_t> ids,
                           Request& resolved);

// Empty, or the name of the model served. Errors: INVALID_ARGUMENT about `model`, NOT_FOUND.
absl::Status CheckModelName(const std::string& name, const std::string& served);

// `ids` against the vocabulary; `field` starts the message.
absl::Status CheckTokenIds(const char* field,
                           const google::protobuf::RepeatedField<uint32_t>& ids,
                           uint32_t vocab);

absl::Status CheckChat(const char* field, const v1::ChatMessages& chat);

// Bytes a prompt holds before it is tokenized, for the limit on waiting work.
int64_t PromptBytes(const v1::GenerateRequest& request);

}  // namespace asynctls
