// SPDX-License-Identifier: Apache-2.0
// The pieces of JSON that OpenAI's answers are made of, as text: a stream makes one such piece per
// token, so nothing goes through a document tree. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "asynctls/v1/generation.pb.h"
#include "engine/text/tokenizer.h"

namespace asynctls {

// A JSON string with its quotes; what is not UTF-8 becomes U+FFFD.
std::string JsonString(absl::string_view text);

// What all objects of one answer start with, up to its first choice:
// {"id":..,"object":..,"created":..,"model":..,"choices":[
std::string ObjectHead(const std::string& id,
                       const char* object,
                       int64_t created,
                       const std::string& model);

// "finish_reason":..,"stop_reason":.. ; the second (vLLM's) is the stop string or stop id.
std::string FinishMembers(const v1::Finished& finished);

// {"prompt_tokens":..}
std::string UsageJson(const v1::Usage& usage);
// Adds a sequence; `first` of its prompt counts the prompt.
void AddUsage(const v1::Usage& usage, bool first, v1::Usage& total);

// One token with its log-probability and the likeliest others at its place.
struct TokenLogProb {
  uint32_t id = 0;
  float log_prob = 0;
  v1::TopLogProbs top;
};
std::vector<TokenLogProb> LogProbsOf(const v1::Delta& delta);
std::vector<TokenLogProb> LogProbsOf(const v1::PromptLogProbs& prompt);

// Chat: [{"token","logprob","bytes","top_logprobs"}, ..]
std::string ChatLogProbs(absl::Span<const TokenLogProb> tokens, const Tokenizer& tokenizer);

// Completions: {"tokens","token_logprobs","top_logprobs","text_offset"}. `first_has_none`: the
// first token is a prompt's, which has no probability. `offset` is the number of characters before
// the first token, and moves on.
std::string CompletionLogProbs(absl::Span<const TokenLogProb> tokens,
                               const Tokenizer& tokenizer,
                               bool first_has_none,
                               size_t& offset);

// vLLM's prompt_logprobs: [null, {"ID": {"logprob","rank","decoded_token"}, ..}, ..]; the rank of a
// token that is not among the likeliest is null.
std::string PromptLogProbsJson(absl::Span<const TokenLogProb> tokens, const Tokenizer& tokenizer);

}  // namespace asynctls
