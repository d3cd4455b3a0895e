// SPDX-License-Identifier: Apache-2.0
// Generation: one request in progress, with its n sequences, whatever protocol it came by. Takes
// events from the engine thread without ever blocking it, turns ids into text on a pool thread, and
// keeps one write in flight. What arrives meanwhile waits as a few bytes a token (at most
// max_tokens of them a sequence) and leaves in one Delta, so a slow reader costs neither time nor
// unbounded memory.
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
#include "engine/text/tokenizer.h"
#include "server/frontend/call_info.h"
#include "server/frontend/open_calls.h"
#include "server/frontend/reply.h"
#include "server/frontend/response_writer.h"
#include "server/frontend/task_pool.h"

namespace asynctls {

// One party at a time has the turn: it alone touches the replies, writes and finishes the call. The
// turn belongs to whoever calls Create until Start or Refuse, then to a pool task or to the write
// in flight, and to nobody while there is no news. Held by its writer and by the engine's
// callbacks.
class Generation final : public std::enable_shared_from_this<Generation> {
 public:
  struct Options {
    std::string id;  // the public one, for the log
    CallInfo call;
    v1::ResponseOptions response;
    v1::Stopping stopping;
    uint32_t sequences = 1;
    const Tokenizer* tokenizer = nullptr;  // these two outlive the generation
    TaskPool* pool = nullptr;
    OpenCalls::Ticket ticket;  // the call is under way until its writer and the engine let go
    // Ends one sequence in the engine; OK = a stop string. Any thread, at any time after Start,
    // repeatedly.
    absl::AnyInvocable<void(uint32_t index, const absl::Status& why)> cancel;
    // Called once, right before the writer's Finish, with the tokens shown to the client.
    absl::AnyInvocable<void(uint64_t tokens)> on_close;
  };

  static std::shared_ptr<Generation> Create(Options options,
                                            std::shared_ptr<ResponseWriter> writer);

  // Exactly one of these, once. Start: the engine has accepted the request (its first events may
  // have been pushed already); `prompt` is needed for prompt log-probabilities only, else empty.
  // Refuse: it has not and never will; the error `why` ends the call.
  void Start(v1::Started started, std::vector<uint32_t> prompt);
  void Refuse(const absl::Status& why);

  // An event of the sequence. Engine thread; neither blocks nor calls the engine.
  void Push(uint32_t index, const TokenEvent& event);

  // Any thread, any time: ends the request; the first `why` counts. ABORTED ends in Finished
  // messages, everything else in an error status.
  void Abort(const absl::Status& why);

  // The client has gone or its deadline has passed: nothing more is written. Any thread.
  void ClientGone();
  bool client_gone() const;

  // The end of a write that did not finish at once. Not ok: as ClientGone.
  void WriteDone(bool ok);

 private:
  // What the engine said since it was last looked at; shown in this order.
  struct News {
    std::optional<v1::Progress> progress;
    std::vector<v1::PromptTokens> prompt;
    std::vector<ReplyToken> tokens;
    std::vector<std::pair<uint32_t, TokenEvent::Finished>> finished;
    bool empty() const { return !progress && prompt.empty() && tokens.empty() && finished.empty(); }
  };

  Generation(Options options, std::shared_ptr<ResponseWriter> writer);

  void CancelAll(const absl::Status& why);
  // All of these: by the party that has the turn.
  void Advance();
  void Take(News news);
  void TakePromptTokens(const v1::PromptTokens& tokens);
  void TakeTokens(std::vector<ReplyToken> tokens);
  void Post(uint32_t index, v1::Delta delta);
  void TakeFinished(uint32_t index, const TokenEvent::Finished& finished);
  void LogEnd(uint32_t index, const TokenEvent::Finished& finished, const absl::Status& end) const;
  void Close(const absl::Status& status);

  // Constant after construction.
  Options options_;

  // Owned by the party that has the turn.
  std::shared_ptr<ResponseWriter> writer_;  // until it is finished
  std::vector<std::unique_ptr<Reply>> replies_;
  v1::Started started_;
  std::vector<uint32_t> prompt_;  // ids, where prompt log-probabilities are asked for
  std::deque<v1::GenerateResponse> outbox_;
  uint32_t finished_ = 0;  // sequences
  absl::Status end_;       // the first error of a sequence

  mutable std::mutex mu_;  // guards what follows
  News news_;
  bool turn_taken_ = true;
  bool started_flag_ = false;
  bool client_gone_ = false;
  std::optional<absl::Status> abort_;
};

}  // namespace asynctls
