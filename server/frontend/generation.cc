// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/generation.h"

#include <algorithm>
#include <utility>

#include "absl/time/time.h"
#include "engine/base/logging.h"
#include "proto/enum_names.h"

namespace asynctls {
namespace {

// Keeps every message far below a client's default limit of 4 MiB.
constexpr int kMaxDeltaTokens = 4096;
constexpr int kMaxPromptTokens = 1024;  // of a PromptLogProbs

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

std::shared_ptr<Generation> Generation::Create(Options options,
                                               std::shared_ptr<ResponseWriter> writer) {
  return std::shared_ptr<Generation>(new Generation(std::move(options), std::move(writer)));
}

Generation::Generation(Options options, std::shared_ptr<ResponseWriter> writer)
    : options_(std::move(options)), writer_(std::move(writer)) {
  for (uint32_t i = 0; i < options_.sequences; ++i) {
    replies_.push_back(
        std::make_unique<Reply>(*options_.tokenizer, options_.response, options_.stopping));
  }
}

void Generation::Start(v1::Started started, std::vector<uint32_t> prompt) {
  started_ = std::move(started);
  prompt_ = std::move(prompt);
  *outbox_.emplace_back().mutable_started() = started_;
  std::optional<absl::Status> abort;
  {
    std::lock_guard lock(mu_);
    started_flag_ = true;
    abort = abort_;
  }
  if (abort.has_value()) CancelAll(*abort);
  Advance();
}

void Generation::Refuse(const absl::Status& why) { Close(why); }

void Generation::Push(uint32_t index, const TokenEvent& event) {
  {
    std::lock_guard lock(mu_);
    if (event.token.has_value()) {
      ReplyToken& token = news_.tokens.emplace_back();
      token.index = index;
      token.id = *event.token;
      token.log_prob = event.log_prob;
      if (event.top.ids_size() > 0) token.top = std::make_unique<v1::TopIds>(event.top);
    }
    if (event.prompt_tokens_done.has_value() && index == 0) {
      news_.progress.emplace().set_prompt_tokens_done(*event.prompt_tokens_done);
    }
    if (event.prompt_log_probs.has_value()) news_.prompt.push_back(*event.prompt_log_probs);
    if (event.finished.has_value()) news_.finished.emplace_back(index, *event.finished);
    if (turn_taken_ || news_.empty()) return;
    turn_taken_ = true;
  }
  options_.pool->Submit([generation = shared_from_this()] { generation->Advance(); });
}

void Generation::Abort(const absl::Status& why) {
  {
    std::lock_guard lock(mu_);
    if (abort_.has_value()) return;
    abort_ = why;
    if (!started_flag_) return;  // Start will see it
  }
  CancelAll(why);
}

void Generation::CancelAll(const absl::Status& why) {
  for (uint32_t i = 0; i < options_.sequences; ++i) options_.cancel(i, why);
}

bool Generation::client_gone() const {
  std::lock_guard lock(mu_);
  return client_gone_;
}

void Generation::ClientGone() {
  {
    std::lock_guard lock(mu_);
    client_gone_ = true;
  }
  Abort(absl::CancelledError("the client has gone or its deadline has passed"));
}

void Generation::WriteDone(bool ok) {
  if (!ok) ClientGone();
  Advance();
}

void Generation::Advance() {
  while (true) {
    if (client_gone()) outbox_.clear();
    while (!outbox_.empty()) {
      v1::GenerateResponse response = std::move(outbox_.front());
      outbox_.pop_front();
      if (!writer_->Write(response)) return;  // the turn went with it, until WriteDone
    }
    if (finished_ == options_.sequences) return Close(end_);
    News news;
    {
      std::lock_guard lock(mu_);
      if (news_.empty()) {
        turn_taken_ = false;
        return;
      }
      news = std::exchange(news_, News());
    }
    Take(std::move(news));
  }
}

void Generation::Take(News news) {
  if (news.progress.has_value()) {
    v1::Progress& progress = *outbox_.emplace_back().mutable_progress();
    progress = *news.progress;
    progress.set_prompt_tokens(started_.prompt_tokens());
  }
  for (const v1::PromptTokens& tokens : news.prompt) TakePromptTokens(tokens);
  TakeTokens(std::move(news.tokens));
  for (const auto& [index, finished] : news.finished) TakeFinished(index, finished);
}

void Generation::TakePromptTokens(const v1::PromptTokens& tokens) {
  for (int at = 0; at < tokens.log_probs_size(); at += kMaxPromptTokens) {
    v1::PromptLogProbs& out = *outbox_.emplace_back().mutable_prompt_log_probs();
    out.set_start(tokens.start() + at);
    if (out.start() == 1) out.set_first_token_id(prompt_[0]);
    const int end = std::min(tokens.log_probs_size(), at + kMaxPromptTokens);
    for (int i = at; i < end; ++i) {
      out.add_token_ids(prompt_[tokens.start() + i]);
      out.add_log_probs(tokens.log_probs(i));
      if (i >= tokens.top_size()) continue;
      v1::TopLogProbs& top = *out.add_top_log_probs();
      *top.mutable_token_ids() = tokens.top(i).ids();
      *top.mutable_log_probs() = tokens.top(i).log_probs();
    }
  }
}

void Generation::TakeTokens(std::vector<ReplyToken> tokens) {
  std::vector<v1::Delta> deltas(options_.sequences);
  std::vector<int> sizes(options_.sequences);
  for (ReplyToken& token : tokens) {
    v1::Delta& delta = deltas[token.index];
    if (replies_[token.index]->Take(token, delta)) {
      options_.cancel(token.index, absl::OkStatus());  // an end as by a stop id
    }
    if (++sizes[token.index] < kMaxDeltaTokens) continue;
    Post(token.index, std::exchange(delta, v1::Delta()));
    sizes[token.index] = 0;
  }
  for (uint32_t i = 0; i < options_.sequences; ++i) Post(i, std::move(deltas[i]));
}

void Generation::Post(uint32_t index, v1::Delta delta) {
  if (delta.text().empty() && delta.token_ids().empty() && delta.log_probs().empty() &&
      delta.top_log_probs().empty()) {
    return;
  }
  delta.set_index(index);
  *outbox_.emplace_back().mutable_delta() = std::move(delta);
}

void Generation::TakeFinished(uint32_t index, const TokenEvent::Finished& finished) {
  Reply& reply = *replies_[index];
  v1::Delta rest;
  reply.Flush(finished.stop_token, rest);
  Post(index, std::move(rest));
  ++finished_;
  const std::optional<std::string>& stop = reply.stop_string();
  const absl::Status end = stop.has_value() ? absl::OkStatus() : EndStatus(finished);
  LogEnd(index, finished, end);
  if (!end.ok()) {
    if (end_.ok()) CancelAll(end);  // the others end with it
    end_.Update(end);
    return;
  }
  v1::Finished& out = *outbox_.emplace_back().mutable_finished();
  out.set_index(index);
  out.set_reason(ToReason(finished.reason));
  if (finished.stop_token.has_value()) out.set_stop_token_id(*finished.stop_token);
  *out.mutable_usage() = ToUsage(finished.usage);
  out.mutable_usage()->set_completion_tokens(reply.tokens());
  out.set_queue_seconds(absl::ToDoubleSeconds(finished.queue));
  out.set_prefill_seconds(absl::ToDoubleSeconds(finished.prefill));
  out.set_decode_seconds(absl::ToDoubleSeconds(finished.decode));
  if (stop.has_value()) {
    out.set_reason(v1::FINISH_REASON_STOP);
    out.set_stop_string(*stop);
  }
}

void Generation::LogEnd(uint32_t index,
                        const TokenEvent::Finished& finished,
                        const absl::Status& end) const {
  const Reply& reply = *replies_[index];
  const v1::KvRead& read = finished.usage.kv_read;
  const double share =
      read.dense_bytes() > 0 ? static_cast<double>(read.bytes()) / read.dense_bytes() : 1;
  const bool stopped = reply.stop_string().has_value() || finished.reason == FinishReason::kStop;
  const bool length = finished.reason == FinishReason::kLength;
  const std::string how = stopped    ? "stop"
                          : length   ? "length"
                          : end.ok() ? "aborted"
                                     : absl::StatusCodeToString(end.code());
  spdlog::info(
      "request id=\"{}\" index={} protocol={} trace={} end={} prompt={} cached={} tokens={} "
      "queue_s={:.3f} prefill_s={:.3f} decode_s={:.3f} mode={} budget={} kv_read={:.4f}",
      options_.id,
      index,
      ProtocolName(options_.call.protocol),
      options_.call.trace_id.empty() ? "-" : options_.call.trace_id,
      how,
      finished.usage.prompt_tokens,
      finished.usage.cached_tokens,
      reply.tokens(),
      absl::ToDoubleSeconds(finished.queue),
      absl::ToDoubleSeconds(finished.prefill),
      absl::ToDoubleSeconds(finished.decode),
      ModeName(started_.sparse().mode()),
      started_.sparse().budget(),
      share);
}

void Generation::Close(const absl::Status& status) {
  uint64_t tokens = 0;
  for (const auto& reply : replies_) tokens += reply->tokens();
  options_.on_close(tokens);
  std::exchange(writer_, nullptr)->Finish(status);
}

}  // namespace asynctls
