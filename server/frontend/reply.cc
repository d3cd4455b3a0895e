// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/reply.h"

#include <utility>
#include <vector>

namespace asynctls {

Reply::Reply(const Tokenizer& tokenizer,
             const v1::ResponseOptions& options,
             const v1::Stopping& stopping)
    : options_(options),
      stopping_(stopping),
      detokenizer_(tokenizer, !options.has_skip_special_tokens() || options.skip_special_tokens()),
      matcher_(std::vector<std::string>(stopping.stop().begin(), stopping.stop().end())) {}

bool Reply::Take(ReplyToken& token, v1::Delta& delta) {
  if (stop_string().has_value()) return false;  // made before the engine heard of it
  ++tokens_;
  if (options_.token_ids()) delta.add_token_ids(token.id);
  if (options_.log_probs()) delta.add_log_probs(token.log_prob);
  if (token.top != nullptr) {
    v1::TopLogProbs& top = *delta.add_top_log_probs();
    *top.mutable_token_ids() = std::move(*token.top->mutable_ids());
    *top.mutable_log_probs() = std::move(*token.top->mutable_log_probs());
  }
  const std::string text = detokenizer_.Append(token.id);
  if (tokens_ <= stopping_.min_tokens()) {
    ShowText(text, delta);
    return false;
  }
  return Feed(text, delta);
}

void Reply::Flush(std::optional<uint32_t> stop_token, v1::Delta& delta) {
  if (stop_string().has_value()) return;
  if (stop_token.has_value() && stopping_.include_stop() &&
      Feed(detokenizer_.Append(*stop_token), delta)) {
    return;
  }
  if (!Feed(detokenizer_.Flush(), delta)) ShowText(matcher_.Flush(), delta);
}

bool Reply::Feed(const std::string& text, v1::Delta& delta) {
  ShowText(matcher_.Append(text), delta);
  if (!stop_string().has_value()) return false;
  if (stopping_.include_stop()) ShowText(*stop_string(), delta);
  return true;
}

void Reply::ShowText(const std::string& text, v1::Delta& delta) {
  if (!options_.has_text() || options_.text()) delta.mutable_text()->append(text);
}

}  // namespace asynctls
