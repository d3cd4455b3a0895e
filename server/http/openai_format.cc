// SPDX-License-Identifier: Apache-2.0
#include "server/http/openai_format.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/text/utf8.h"
#include "proto/enum_names.h"

namespace asynctls {
namespace {

// JSON has no infinity; OpenAI's number for "impossible".
constexpr float kImpossible = -9999;

std::string Number(float log_prob) {
  return Json(log_prob >= kImpossible ? log_prob : kImpossible).dump();
}

// A token on its own, as text.
std::string TextOf(uint32_t id, const Tokenizer& tokenizer) {
  const absl::string_view bytes = tokenizer.BytesOf(id);
  std::string out;
  if (AppendLossyUtf8(bytes, out) < bytes.size()) {
    out.append(kReplacementCharacter.data(), kReplacementCharacter.size());
  }
  return out;
}

size_t Characters(absl::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

// "token":..,"logprob":..,"bytes":[..]
std::string ChatToken(uint32_t id, float log_prob, const Tokenizer& tokenizer) {
  std::string bytes;
  for (unsigned char byte : tokenizer.BytesOf(id)) {
    absl::StrAppend(&bytes, bytes.empty() ? "" : ",", static_cast<int>(byte));
  }
  return absl::StrCat("\"token\":",
                      JsonString(TextOf(id, tokenizer)),
                      ",\"logprob\":",
                      Number(log_prob),
                      ",\"bytes\":[",
                      bytes,
                      "]");
}

template <class Message>
std::vector<TokenLogProb> Collect(const Message& message) {
  std::vector<TokenLogProb> out(std::min(message.token_ids_size(), message.log_probs_size()));
  for (size_t i = 0; i < out.size(); ++i) {
    const int at = static_cast<int>(i);
    out[i].id = message.token_ids(at);
    out[i].log_prob = message.log_probs(at);
    if (at < message.top_log_probs_size()) out[i].top = message.top_log_probs(at);
  }
  return out;
}

// Calls visit(id, log_prob) for a token and its alternatives, each id once, the token first.
template <class Visit>
void ForAll(const TokenLogProb& token, Visit visit) {
  visit(token.id, token.log_prob);
  for (int i = 0; i < token.top.token_ids_size(); ++i) {
    if (token.top.token_ids(i) != token.id) visit(token.top.token_ids(i), token.top.log_probs(i));
  }
}

std::string RankOf(uint32_t id, const v1::TopLogProbs& top) {
  const auto found = std::find(top.token_ids().begin(), top.token_ids().end(), id);
  return found == top.token_ids().end() ? "null"
                                        : absl::StrCat(found - top.token_ids().begin() + 1);
}

// {"TEXT":logprob, ..}
std::string TopMap(const TokenLogProb& token, const Tokenizer& tokenizer) {
  std::string out;
  std::set<std::string> seen;  // different bytes may look alike
  ForAll(token, [&](uint32_t id, float log_prob) {
    const std::string text = TextOf(id, tokenizer);
    if (!seen.insert(text).second) return;
    absl::StrAppend(&out, out.empty() ? "" : ",", JsonString(text), ":", Number(log_prob));
  });
  return absl::StrCat("{", out, "}");
}

}  // namespace

std::string JsonString(absl::string_view text) {
  return Json(std::string(text)).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string ObjectHead(const std::string& id,
                       const char* object,
                       int64_t created,
                       const std::string& model) {
  return absl::StrCat("{\"id\":",
                      JsonString(id),
                      ",\"object\":\"",
                      object,
                      "\",\"created\":",
                      created,
                      ",\"model\":",
                      JsonString(model),
                      ",\"choices\":[");
}

std::string FinishMembers(const v1::Finished& finished) {
  std::string stop = "null";
  if (finished.has_stop_string()) stop = JsonString(finished.stop_string());
  if (finished.has_stop_token_id()) stop = absl::StrCat(finished.stop_token_id());
  return absl::StrCat(
      "\"finish_reason\":\"", CommonReasonName(finished.reason()), "\",\"stop_reason\":", stop);
}

std::string UsageJson(const v1::Usage& usage) {
  return absl::StrCat("{\"prompt_tokens\":",
                      usage.prompt_tokens(),
                      ",\"completion_tokens\":",
                      usage.completion_tokens(),
                      ",\"total_tokens\":",
                      uint64_t{usage.prompt_tokens()} + usage.completion_tokens(),
                      ",\"prompt_tokens_details\":{\"cached_tokens\":",
                      usage.cached_tokens(),
                      "},\"asynctls\":{\"kv_bytes_read\":",
                      usage.kv_read().bytes(),
                      ",\"kv_bytes_dense\":",
                      usage.kv_read().dense_bytes(),
                      ",\"decode_steps\":",
                      usage.decode_steps(),
                      "}}");
}

void AddUsage(const v1::Usage& usage, bool first, v1::Usage& total) {
  if (first) {
    total.set_prompt_tokens(total.prompt_tokens() + usage.prompt_tokens());
    total.set_cached_tokens(total.cached_tokens() + usage.cached_tokens());
  }
  total.set_completion_tokens(total.completion_tokens() + usage.completion_tokens());
  total.set_decode_steps(total.decode_steps() + usage.decode_steps());
  v1::KvRead& read = *total.mutable_kv_read();
  read.set_bytes(read.bytes() + usage.kv_read().bytes());
  read.set_dense_bytes(read.dense_bytes() + usage.kv_read().dense_bytes());
}

std::vector<TokenLogProb> LogProbsOf(const v1::Delta& delta) { return Collect(delta); }
std::vector<TokenLogProb> LogProbsOf(const v1::PromptLogProbs& prompt) { return Collect(prompt); }

std::string ChatLogProbs(absl::Span<const TokenLogProb> tokens, const Tokenizer& tokenizer) {
  std::string out = "[";
  for (const TokenLogProb& token : tokens) {
    absl::StrAppend(&out,
                    out.size() > 1 ? ",{" : "{",
                    ChatToken(token.id, token.log_prob, tokenizer),
                    ",\"top_logprobs\":[");
    for (int i = 0; i < token.top.token_ids_size(); ++i) {
      absl::StrAppend(&out,
                      i > 0 ? ",{" : "{",
                      ChatToken(token.top.token_ids(i), token.top.log_probs(i), tokenizer),
                      "}");
    }
    out += "]}";
  }
  return out + "]";
}

std::string CompletionLogProbs(absl::Span<const TokenLogProb> tokens,
                               const Tokenizer& tokenizer,
                               bool first_has_none,
                               size_t& offset) {
  std::string texts, log_probs, tops, offsets;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const char* comma = i > 0 ? "," : "";
    const bool none = first_has_none && i == 0;
    const std::string text = TextOf(tokens[i].id, tokenizer);
    absl::StrAppend(&texts, comma, JsonString(text));
    absl::StrAppend(&log_probs, comma, none ? "null" : Number(tokens[i].log_prob));
    absl::StrAppend(&tops, comma, none ? "null" : TopMap(tokens[i], tokenizer));
    absl::StrAppend(&offsets, comma, offset);
    offset += Characters(text);
  }
  return absl::StrCat("{\"tokens\":[",
                      texts,
                      "],\"token_logprobs\":[",
                      log_probs,
                      "],\"top_logprobs\":[",
                      tops,
                      "],\"text_offset\":[",
                      offsets,
                      "]}");
}

std::string PromptLogProbsJson(absl::Span<const TokenLogProb> tokens, const Tokenizer& tokenizer) {
  std::string out = "[null";
  for (const TokenLogProb& token : tokens) {
    out += ",{";
    bool more = false;
    ForAll(token, [&](uint32_t id, float log_prob) {
      absl::StrAppend(&out,
                      more ? ",\"" : "\"",
                      id,
                      "\":{\"logprob\":",
                      Number(log_prob),
                      ",\"rank\":",
                      RankOf(id, token.top),
                      ",\"decoded_token\":",
                      JsonString(TextOf(id, tokenizer)),
                      "}");
      more = true;
    });
    out += "}";
  }
  return out + "]";
}

}  // namespace asynctls
