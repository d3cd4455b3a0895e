// SPDX-License-Identifier: Apache-2.0
// TokenStream: one Generate call. Takes events from the engine thread without ever blocking it,
// turns ids into text and looks for stop strings on a pool thread, and keeps one write in flight.
// What arrives meanwhile waits as 8 bytes a token (at most max_tokens of them) and leaves in one
// Delta, so a slow reader costs neither time nor unbounded memory.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "asynctls/v1/generation.pb.h"
#include "engine/scheduler/request.h"
#include "engine/text/detokenizer.h"
#include "engine/text/stop_matcher.h"
#include "engine/text/tokenizer.h"
#include "grpcpp/support/server_callback.h"
#include "server/task_pool.h"

namespace asynctls {

// Lives until both gRPC (OnDone) and the engine (the request's on_event) have let go of it.
//
// One party at a time has the turn: it alone touches the detokenizer, starts writes and finishes
// the call. The turn belongs to the caller of Create until Start or Refuse, then to a pool task or
// to the write in flight, and to nobody while there is no news.
class TokenStream final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                          public std::enable_shared_from_this<TokenStream> {
 public:
  struct Options {
    std::string id;  // the public one, for the log
    v1::ResponseOptions response;
    std::vector<std::string> stop;
    const Tokenizer* tokenizer = nullptr;  // these two outlive the stream
    TaskPool* pool = nullptr;
    // Ends the engine's request. Any thread, at any time after Start, repeatedly.
    absl::AnyInvocable<void(absl::Status why)> cancel;
    // Called once, right before the call's status is sent.
    absl::AnyInvocable<void()> on_close;
  };

  static std::shared_ptr<TokenStream> Create(Options options);

  // Exactly one of these, once. Start: the engine has accepted the request (its first events may
  // have been pushed already). Refuse: it has not and never will; the error `why` ends the call.
  void Start(v1::Started started);
  void Refuse(const absl::Status& why);

  // The request's on_event. Engine thread; neither blocks nor calls the engine.
  void Push(const TokenEvent& event);

  // Any thread, any time: ends the request; the first `why` counts. ABORTED ends in a Finished
  // message, everything else in an error status.
  void Abort(const absl::Status& why);

  // The client has gone or its deadline has passed.
  bool client_gone() const;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  struct Token {
    uint32_t id;
    float log_prob;
  };
  // What the engine said since it was last looked at; in this order.
  struct News {
    std::optional<v1::Progress> progress;
    std::vector<Token> tokens;
    std::optional<TokenEvent::Finished> finished;
    bool empty() const { return !progress && tokens.empty() && !finished; }
  };

  explicit TokenStream(Options options);

  // All of these: by the party that has the turn.
  void Advance();
  void Take(const News& news);
  void TakeTokens(const std::vector<Token>& tokens);
  void TakeToken(const Token& token, v1::Delta& delta);
  void Post(v1::Delta delta);
  void TakeFinished(const TokenEvent::Finished& finished);
  void LogEnd(const TokenEvent::Finished& finished, const absl::Status& status) const;
  void Close(const absl::Status& status);

  // Constant after construction.
  Options options_;

  // Owned by the party that has the turn.
  Detokenizer detokenizer_;
  StopMatcher stop_matcher_;
  uint32_t delivered_tokens_ = 0;
  v1::Started started_;
  std::deque<v1::GenerateResponse> outbox_;
  v1::GenerateResponse response_;  // the write in flight
  std::optional<absl::Status> end_;

  mutable std::mutex mu_;  // guards what follows
  News news_;
  bool turn_taken_ = true;
  bool started_flag_ = false;
  bool client_gone_ = false;
  std::optional<absl::Status> abort_;

  std::shared_ptr<TokenStream> self_;  // gRPC's hold on this, until OnDone
};

}  // namespace asynctls
