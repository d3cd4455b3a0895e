// SPDX-License-Identifier: Apache-2.0
#include "server/http/openai_reply.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/frontend/errors.h"
#include "server/frontend/generation.h"
#include "server/http/http_error.h"

namespace asynctls {
namespace {

constexpr char kDone[] = "data: [DONE]\n\n";
constexpr char kUnfinished[] = "\"finish_reason\":null";

const char* ObjectName(const OpenAiOptions& options) {
  if (!options.chat) return "text_completion";
  return options.stream ? "chat.completion.chunk" : "chat.completion";
}

HttpResponse StreamHead(const std::string& id) {
  HttpResponse head;
  head.content_type = "text/event-stream; charset=utf-8";
  head.headers = {{"Cache-Control", "no-cache"}, {"X-Request-Id", id}};
  return head;
}

// Log-probabilities with their alternatives.
size_t CountOf(const std::vector<TokenLogProb>& tokens) {
  size_t n = 0;
  for (const TokenLogProb& token : tokens) n += 1 + token.top.token_ids_size();
  return n;
}

}  // namespace

class OpenAiReply::Part final : public ResponseWriter,
                                public std::enable_shared_from_this<OpenAiReply::Part> {
 public:
  Part(std::shared_ptr<OpenAiReply> reply, uint32_t prompt)
      : reply_(std::move(reply)), prompt_(prompt) {}

  bool Write(v1::GenerateResponse& response) override {
    return reply_->Write(prompt_, *this, response);
  }
  void Finish(const absl::Status& status) override { reply_->Finish(status); }

  void ClientGone() {
    if (generation() != nullptr) generation()->ClientGone();
  }
  void WriteDone(bool ok) { generation()->WriteDone(ok); }

 private:
  const std::shared_ptr<OpenAiReply> reply_;
  const uint32_t prompt_;
};

OpenAiReply::OpenAiReply(std::shared_ptr<HttpCall> call,
                         OpenAiRequest request,
                         std::string id,
                         std::string model,
                         absl::Time created,
                         const Tokenizer& tokenizer)
    : call_(std::move(call)),
      request_(std::move(request)),
      options_(request_.options),
      id_(std::move(id)),
      head_(ObjectHead(id_, ObjectName(options_), absl::ToUnixSeconds(created), model)),
      tokenizer_(tokenizer),
      // Refused before anything is written where it is too large.
      n_(request_.prompts[0]->sampling().has_n() ? request_.prompts[0]->sampling().n() : 1),
      prompts_(request_.prompts.size()) {}

OpenAiReply::~OpenAiReply() = default;

std::shared_ptr<ResponseWriter> OpenAiReply::Writer(uint32_t prompt) {
  auto part = std::make_shared<Part>(shared_from_this(), prompt);
  prompts_[prompt].part = part;
  return part;
}

void OpenAiReply::Submitted(uint32_t prompt) {
  {
    std::lock_guard lock(mu_);
    prompts_[prompt].submitted = true;
    if (!cancelled_) return;
  }
  if (const auto part = prompts_[prompt].part.lock()) part->ClientGone();
}

void OpenAiReply::Cancel() {
  std::vector<std::shared_ptr<Part>> parts;
  {
    std::lock_guard lock(mu_);
    cancelled_ = true;
    for (const Prompt& prompt : prompts_) {
      if (prompt.submitted) parts.push_back(prompt.part.lock());
    }
  }
  for (const auto& part : parts) {
    if (part != nullptr) part->ClientGone();
  }
}

// ---------------------------------------------------------------------- what generations write --

bool OpenAiReply::Write(uint32_t prompt, Part& part, v1::GenerateResponse& response) {
  switch (response.event_case()) {
    case v1::GenerateResponse::kStarted:
      return Started(prompt, part);
    case v1::GenerateResponse::kDelta:
      return Delta(prompt, part, response.delta());
    case v1::GenerateResponse::kFinished:
      return Finished(prompt, part, response.finished());
    case v1::GenerateResponse::kPromptLogProbs: {
      std::vector<TokenLogProb>& all = prompts_[prompt].log_probs;
      std::vector<TokenLogProb> more = LogProbsOf(response.prompt_log_probs());
      Count(CountOf(more));
      for (TokenLogProb& token : more) all.push_back(std::move(token));
      return true;
    }
    case v1::GenerateResponse::kProgress:
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;
  }
  return true;
}

bool OpenAiReply::Started(uint32_t prompt, Part& part) {
  prompts_[prompt].choices.resize(n_);
  if (options_.echo) prompts_[prompt].echo = PromptText(prompt);
  if (!options_.stream) return true;
  std::string bytes;
  for (uint32_t i = 0; i < n_; ++i) {
    const uint32_t index = Index(prompt, i);
    if (options_.chat) {
      absl::StrAppend(&bytes,
                      ChatEvent(index, R"("role":"assistant","content":"")", "null", kUnfinished));
    } else if (options_.echo) {
      absl::StrAppend(&bytes, TextEvent(index, prompts_[prompt].echo, "null", kUnfinished));
    }
  }
  return bytes.empty() || Send(part, std::move(bytes));
}

bool OpenAiReply::Delta(uint32_t prompt, Part& part, const v1::Delta& delta) {
  Choice& choice = prompts_[prompt].choices[delta.index()];
  if (!options_.stream) {
    Collect(choice, delta);
    return true;
  }
  const uint32_t index = Index(prompt, delta.index());
  const std::string log_probs = DeltaLogProbs(choice, delta);
  if (!options_.chat) {
    if (delta.text().empty() && log_probs == "null") return true;
    return Send(part, TextEvent(index, delta.text(), log_probs, kUnfinished));
  }
  ReasoningSplitter::Parts parts;
  if (options_.split_reasoning) {
    parts = choice.splitter.Append(delta.text());
  } else {
    parts.content = delta.text();
  }
  const std::string text = TextMembers(parts);
  if (text.empty() && log_probs == "null") return true;
  return Send(part, ChatEvent(index, text, log_probs, kUnfinished));
}

bool OpenAiReply::Finished(uint32_t prompt, Part& part, const v1::Finished& finished) {
  Choice& choice = prompts_[prompt].choices[finished.index()];
  choice.finished = finished;
  {
    std::lock_guard lock(mu_);
    AddUsage(finished.usage(), finished.index() == 0, usage_);
  }
  const ReasoningSplitter::Parts rest = choice.splitter.Flush();
  if (!options_.stream) {
    choice.text += rest.content;
    choice.reasoning += rest.reasoning;
    return true;
  }
  const uint32_t index = Index(prompt, finished.index());
  const std::string finish = FinishMembers(finished);
  if (!options_.chat) return Send(part, TextEvent(index, "", "null", finish));
  const std::string text = TextMembers(rest);
  std::string bytes = text.empty() ? "" : ChatEvent(index, text, "null", kUnfinished);
  absl::StrAppend(&bytes, ChatEvent(index, "", "null", finish));
  return Send(part, std::move(bytes));
}

void OpenAiReply::Finish(const absl::Status& status) {
  if (!status.ok()) return Fail(status);
  std::string bytes;
  {
    std::lock_guard lock(mu_);
    if (cancelled_ || ++ended_ < prompts_.size()) return;
  }
  // The last one to end: nobody else is left.
  if (!options_.stream) {
    HttpResponse response;
    response.headers = {{"X-Request-Id", id_}};
    response.body = Full();
    return call_->Respond(std::move(response));
  }
  if (!streaming_) call_->StartStream(StreamHead(id_));
  call_->End(LastEvents());
}

void OpenAiReply::Fail(const absl::Status& status) {
  {
    std::lock_guard lock(mu_);
    if (std::exchange(cancelled_, true)) return;
    if (streaming_) {
      call_->End(absl::StrCat("data: ", ErrorJson(status), "\n\n", kDone));
    } else {
      call_->Respond(ErrorResponse(status));
    }
  }
  Cancel();
}

bool OpenAiReply::Send(Part& part, std::string bytes) {
  std::lock_guard lock(mu_);  // one stream head, before everything else
  if (cancelled_) return true;
  if (!std::exchange(streaming_, true)) call_->StartStream(StreamHead(id_));
  call_->Send(std::move(bytes), [part = part.shared_from_this()](bool ok) { part->WriteDone(ok); });
  return false;
}

void OpenAiReply::Count(size_t log_probs) {
  {
    std::lock_guard lock(mu_);
    log_probs_ += log_probs;
    if (log_probs_ <= kMaxLogProbs) return;
  }
  Fail(InvalidField(options_.prompt_logprobs ? "prompt_logprobs" : "logprobs",
                    " asks for more than ",
                    kMaxLogProbs,
                    " log-probabilities in one answer"));
}

// ------------------------------------------------------------------------------------ in events --

std::string OpenAiReply::Event(const std::string& choice) const {
  return absl::StrCat(
      "data: ", head_, choice, options_.include_usage ? "],\"usage\":null}\n\n" : "]}\n\n");
}

std::string OpenAiReply::ChatEvent(uint32_t index,
                                   const std::string& delta,
                                   const std::string& log_probs,
                                   const std::string& finish) const {
  return Event(absl::StrCat(
      "{\"index\":", index, ",\"delta\":{", delta, "},\"logprobs\":", log_probs, ",", finish, "}"));
}

std::string OpenAiReply::TextEvent(uint32_t index,
                                   const std::string& text,
                                   const std::string& log_probs,
                                   const std::string& finish) const {
  return Event(absl::StrCat("{\"index\":",
                            index,
                            ",\"text\":",
                            JsonString(text),
                            ",\"logprobs\":",
                            log_probs,
                            ",",
                            finish,
                            "}"));
}

std::string OpenAiReply::TextMembers(const ReasoningSplitter::Parts& parts) const {
  std::string out;
  if (!parts.reasoning.empty()) {
    absl::StrAppend(&out, "\"reasoning_content\":", JsonString(parts.reasoning));
  }
  if (!parts.content.empty()) {
    absl::StrAppend(&out, out.empty() ? "" : ",", "\"content\":", JsonString(parts.content));
  }
  return out;
}

std::string OpenAiReply::DeltaLogProbs(Choice& choice, const v1::Delta& delta) const {
  if (!options_.logprobs.has_value()) return "null";
  const std::vector<TokenLogProb> tokens = LogProbsOf(delta);
  if (tokens.empty()) return "null";
  if (!options_.chat) return CompletionLogProbs(tokens, tokenizer_, false, choice.offset);
  return absl::StrCat("{\"content\":", ChatLogProbs(tokens, tokenizer_), ",\"refusal\":null}");
}

std::string OpenAiReply::LastEvents() const {
  std::string out;
  if (options_.include_usage) {
    absl::StrAppend(&out, "data: ", head_, "],\"usage\":", UsageJson(usage_), "}\n\n");
  }
  return out + kDone;
}

// --------------------------------------------------------------------------------- in one piece --

void OpenAiReply::Collect(Choice& choice, const v1::Delta& delta) {
  if (options_.split_reasoning) {
    ReasoningSplitter::Parts parts = choice.splitter.Append(delta.text());
    choice.text += parts.content;
    choice.reasoning += parts.reasoning;
  } else {
    choice.text += delta.text();
  }
  if (!options_.logprobs.has_value()) return;
  std::vector<TokenLogProb> more = LogProbsOf(delta);
  Count(CountOf(more));
  for (TokenLogProb& token : more) choice.log_probs.push_back(std::move(token));
}

std::string OpenAiReply::PromptText(uint32_t prompt) const {
  const v1::GenerateRequest& request = *request_.prompts[prompt];
  if (request.has_text()) return request.text();
  const auto& ids = request.token_ids().ids();
  const auto text = tokenizer_.Decode(std::vector<uint32_t>(ids.begin(), ids.end()), false);
  return text.ok() ? *text : "";
}

std::vector<TokenLogProb> OpenAiReply::EchoLogProbs(uint32_t prompt) const {
  const v1::GenerateRequest& request = *request_.prompts[prompt];
  std::vector<TokenLogProb> out(1);  // the first token, of which nothing was reported
  if (request.has_token_ids()) {
    out[0].id = request.token_ids().ids(0);
  } else {
    const auto ids = tokenizer_.Encode(request.text(), /*parse_special=*/true);
    if (ids.ok()) out[0].id = ids->front();
  }
  const std::vector<TokenLogProb>& rest = prompts_[prompt].log_probs;
  out.insert(out.end(), rest.begin(), rest.end());
  return out;
}

std::string OpenAiReply::FullChoice(uint32_t prompt, uint32_t sequence) {
  Choice& choice = prompts_[prompt].choices[sequence];
  std::string out = absl::StrCat("{\"index\":", Index(prompt, sequence), ",");
  std::string log_probs = "null";
  if (options_.chat) {
    absl::StrAppend(&out,
                    "\"message\":{\"role\":\"assistant\",\"content\":",
                    JsonString(choice.text),
                    ",\"refusal\":null");
    if (!choice.reasoning.empty()) {
      absl::StrAppend(&out, ",\"reasoning_content\":", JsonString(choice.reasoning));
    }
    out += "}";
    if (options_.logprobs.has_value()) {
      log_probs = absl::StrCat(
          "{\"content\":", ChatLogProbs(choice.log_probs, tokenizer_), ",\"refusal\":null}");
    }
  } else {
    absl::StrAppend(&out, "\"text\":", JsonString(prompts_[prompt].echo + choice.text));
    if (options_.logprobs.has_value()) {
      std::vector<TokenLogProb> tokens;
      if (options_.echo) tokens = EchoLogProbs(prompt);
      tokens.insert(tokens.end(), choice.log_probs.begin(), choice.log_probs.end());
      log_probs = CompletionLogProbs(tokens, tokenizer_, options_.echo, choice.offset);
    }
    if (options_.prompt_logprobs) {
      absl::StrAppend(&out,
                      ",\"prompt_logprobs\":",
                      PromptLogProbsJson(prompts_[prompt].log_probs, tokenizer_));
    }
  }
  return absl::StrCat(out, ",\"logprobs\":", log_probs, ",", FinishMembers(choice.finished), "}");
}

std::string OpenAiReply::Full() {
  std::string out = head_;
  for (uint32_t prompt = 0; prompt < prompts_.size(); ++prompt) {
    for (uint32_t i = 0; i < n_; ++i) {
      absl::StrAppend(&out, prompt + i > 0 ? "," : "", FullChoice(prompt, i));
    }
  }
  absl::StrAppend(&out, "],\"usage\":", UsageJson(usage_));
  if (options_.chat && options_.prompt_logprobs) {
    absl::StrAppend(
        &out, ",\"prompt_logprobs\":", PromptLogProbsJson(prompts_[0].log_probs, tokenizer_));
  }
  return out + "}";
}

}  // namespace asynctls
