// SPDX-License-Identifier: Apache-2.0
#include "server/token_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "engine/base/logging.h"
#include "server/grpc_status.h"

namespace asynctls {
namespace {

// Keeps every message far below a client's default limit of 4 MiB.
constexpr size_t kMaxDeltaTokens = 4096;

v1::Usage ToUsage(const RequestUsage& usage) {
  v1::Usage out;
  out.set_prompt_tokens(usage.prompt_tokens);
  out.set_cached_tokens(usage.cached_tokens);
  out.set_completion_tokens(usage.completion_tokens);
  *out.mutable_kv_read() = usage.kv_read;
  out.set_decode_steps(usage.decode_steps);
  return out;
}

v1::FinishReason ToReason(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kAborted:
    case FinishReason::kFailed:
      break;
  }
  return v1::FINISH_REASON_ABORTED;
}

std::string ModeName(v1::AttentionMode mode) {
  return absl::AsciiStrToLower(absl::StripPrefix(v1::AttentionMode_Name(mode), "ATTENTION_MODE_"));
}

// What the call ends with: OK where there is a Finished message, an error otherwise.
absl::Status EndStatus(const TokenEvent::Finished& finished) {
  switch (finished.reason) {
    case FinishReason::kStop:
    case FinishReason::kLength:
      return absl::OkStatus();
    case FinishReason::kAborted:
      return absl::IsAborted(finished.status) ? absl::OkStatus() : finished.status;
    case FinishReason::kFailed:
      break;
  }
  return finished.status;
}

}  // namespace

std::shared_ptr<TokenStream> TokenStream::Create(Options options) {
  std::shared_ptr<TokenStream> stream(new TokenStream(std::move(options)));
  stream->self_ = stream;
  return stream;
}

TokenStream::TokenStream(Options options)
    : options_(std::move(options)),
      detokenizer_(*options_.tokenizer, /*skip_special=*/true),
      stop_matcher_(options_.stop) {}

void TokenStream::Start(v1::Started started) {
  started_ = std::move(started);
  *outbox_.emplace_back().mutable_started() = started_;
  std::optional<absl::Status> abort;
  {
    std::lock_guard lock(mu_);
    started_flag_ = true;
    abort = abort_;
  }
  if (abort.has_value()) options_.cancel(*abort);
  Advance();
}

void TokenStream::Refuse(const absl::Status& why) { Close(why); }

void TokenStream::Push(const TokenEvent& event) {
  {
    std::lock_guard lock(mu_);
    if (event.token.has_value()) news_.tokens.push_back({*event.token, event.log_prob});
    if (event.prompt_tokens_done.has_value()) {
      news_.progress.emplace().set_prompt_tokens_done(*event.prompt_tokens_done);
    }
    if (event.finished.has_value()) news_.finished = event.finished;
    if (turn_taken_ || news_.empty()) return;
    turn_taken_ = true;
  }
  options_.pool->Submit([stream = shared_from_this()] { stream->Advance(); });
}

void TokenStream::Abort(const absl::Status& why) {
  {
    std::lock_guard lock(mu_);
    if (abort_.has_value()) return;
    abort_ = why;
    if (!started_flag_) return;  // Start will see it
  }
  options_.cancel(why);
}

bool TokenStream::client_gone() const {
  std::lock_guard lock(mu_);
  return client_gone_;
}

void TokenStream::OnWriteDone(bool ok) {
  if (!ok) OnCancel();
  Advance();
}

void TokenStream::OnCancel() {
  {
    std::lock_guard lock(mu_);
    client_gone_ = true;
  }
  Abort(absl::CancelledError("the client has gone or its deadline has passed"));
}

void TokenStream::OnDone() { std::shared_ptr<TokenStream> last = std::move(self_); }

void TokenStream::Advance() {
  while (true) {
    if (client_gone()) outbox_.clear();
    if (!outbox_.empty()) {
      response_ = std::move(outbox_.front());
      outbox_.pop_front();
      StartWrite(&response_);  // takes the turn with it, until OnWriteDone
      return;
    }
    if (end_.has_value()) return Close(*end_);
    News news;
    {
      std::lock_guard lock(mu_);
      if (news_.empty()) {
        turn_taken_ = false;
        return;
      }
      news = std::exchange(news_, News());
    }
    Take(news);
  }
}

void TokenStream::Take(const News& news) {
  if (news.progress.has_value()) {
    v1::Progress& progress = *outbox_.emplace_back().mutable_progress();
    progress = *news.progress;
    progress.set_prompt_tokens(started_.prompt_tokens());
  }
  TakeTokens(news.tokens);
  if (news.finished.has_value()) TakeFinished(*news.finished);
}

void TokenStream::TakeTokens(const std::vector<Token>& tokens) {
  for (size_t at = 0; at < tokens.size(); at += kMaxDeltaTokens) {
    v1::Delta delta;
    const size_t end = std::min(tokens.size(), at + kMaxDeltaTokens);
    for (size_t i = at; i < end; ++i) TakeToken(tokens[i], delta);
    Post(std::move(delta));
  }
}

void TokenStream::TakeToken(const Token& token, v1::Delta& delta) {
  if (stop_matcher_.matched()) return;  // made before the engine heard of it
  ++delivered_tokens_;
  if (options_.response.token_ids()) delta.add_token_ids(token.id);
  if (options_.response.log_probs()) delta.add_log_probs(token.log_prob);
  delta.mutable_text()->append(stop_matcher_.Append(detokenizer_.Append(token.id)));
  if (stop_matcher_.matched()) options_.cancel(absl::CancelledError("stop string"));
}

void TokenStream::Post(v1::Delta delta) {
  if (options_.response.has_text() && !options_.response.text()) delta.clear_text();
  if (delta.text().empty() && delta.token_ids().empty() && delta.log_probs().empty()) return;
  *outbox_.emplace_back().mutable_delta() = std::move(delta);
}

void TokenStream::TakeFinished(const TokenEvent::Finished& finished) {
  v1::Delta rest;  // what was held back
  rest.set_text(stop_matcher_.Append(detokenizer_.Flush()) + stop_matcher_.Flush());
  Post(std::move(rest));
  const std::optional<std::string>& stop = stop_matcher_.matched();
  end_ = stop.has_value() ? absl::OkStatus() : EndStatus(finished);
  LogEnd(finished, *end_);
  if (!end_->ok()) return;

  v1::Finished& out = *outbox_.emplace_back().mutable_finished();
  out.set_reason(ToReason(finished.reason));
  if (finished.stop_token.has_value()) out.set_stop_token_id(*finished.stop_token);
  *out.mutable_usage() = ToUsage(finished.usage);
  out.mutable_usage()->set_completion_tokens(delivered_tokens_);
  out.set_queue_seconds(absl::ToDoubleSeconds(finished.queue));
  out.set_prefill_seconds(absl::ToDoubleSeconds(finished.prefill));
  out.set_decode_seconds(absl::ToDoubleSeconds(finished.decode));
  if (stop.has_value()) {
    out.set_reason(v1::FINISH_REASON_STOP);
    out.set_stop_string(*stop);
  }
}

void TokenStream::LogEnd(const TokenEvent::Finished& finished, const absl::Status& status) const {
  const v1::KvRead& read = finished.usage.kv_read;
  const double share =
      read.dense_bytes() > 0 ? static_cast<double>(read.bytes()) / read.dense_bytes() : 1;
  const bool stopped =
      stop_matcher_.matched().has_value() || finished.reason == FinishReason::kStop;
  const bool length = finished.reason == FinishReason::kLength;
  const std::string end = stopped       ? "stop"
                          : length      ? "length"
                          : status.ok() ? "aborted"
                                        : absl::StatusCodeToString(status.code());
  spdlog::info(
      "request id=\"{}\" end={} prompt={} cached={} tokens={} queue_s={:.3f} prefill_s={:.3f} "
      "decode_s={:.3f} mode={} budget={} kv_read={:.4f}",
      options_.id,
      end,
      finished.usage.prompt_tokens,
      finished.usage.cached_tokens,
      delivered_tokens_,
      absl::ToDoubleSeconds(finished.queue),
      absl::ToDoubleSeconds(finished.prefill),
      absl::ToDoubleSeconds(finished.decode),
      ModeName(started_.sparse().mode()),
      started_.sparse().budget(),
      share);
}

void TokenStream::Close(const absl::Status& status) {
  options_.on_close();
  Finish(ToGrpcStatus(status));  // this may be gone now
}

}  // namespace asynctls
