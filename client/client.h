// SPDX-License-Identifier: Apache-2.0
// Client: a channel and the calls the subcommands need, with absl::Status and a callback for the
// streamed events. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "asynctls/v1/generation.grpc.pb.h"
#include "engine/base/json.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"

namespace asynctls {

// One of a request's n sequences.
struct Choice {
  std::string text;
  v1::Delta tokens;  // all Deltas merged: ids and log-probabilities where asked for
  v1::Finished finished;
};

// A whole reply. Times are this side's.
struct GenerateReply {
  v1::Started started;
  std::vector<Choice> choices;  // by index, n of them
  v1::PromptLogProbs prompt;    // all PromptLogProbs merged, where asked for
  absl::Duration first_token;   // from the call to the first Delta; to the end without any
  absl::Duration total;

  const std::string& text() const { return choices.front().text; }
  const v1::Finished& finished() const { return choices.front().finished; }
};

// Ends a call from any thread, before or while it runs. For one call.
class Canceller {
 public:
  void Cancel();

 private:
  friend class Client;
  void Watch(grpc::ClientContext* context);  // null: the call is over

  std::mutex mu_;  // guards what follows
  grpc::ClientContext* context_ = nullptr;
  bool cancelled_ = false;
};

struct CallOptions {
  absl::Time deadline = absl::InfiniteFuture();
  Canceller* canceller = nullptr;
};

class Client {
 public:
  using OnEvent = std::function<void(const v1::GenerateResponse&)>;

  // Does not connect yet.
  explicit Client(const std::string& target);

  // Blocks until the stream has ended. `on_event` is called for each message as it arrives. Errors:
  // the call's status; DATA_LOSS when the stream ended well but without exactly one Finished per
  // sequence.
  absl::StatusOr<GenerateReply> Generate(const v1::GenerateRequest& request,
                                         const OnEvent& on_event,
                                         const CallOptions& options = CallOptions());
  absl::StatusOr<v1::GetModelInfoResponse> GetModelInfo();

 private:
  std::unique_ptr<v1::GenerationService::Stub> stub_;
};

// [{"role","content"},..] as chat messages. Errors: INVALID_ARGUMENT, starting with `origin`.
absl::StatusOr<v1::ChatMessages> ParseMessages(const Json& json, const std::string& origin);

// The channel every subcommand uses. Channels with different `id`s have connections of their own.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target, int id = 0);

// The call's status, as absl's.
absl::Status FromGrpc(const grpc::Status& status);

// Bytes of KV read beside what dense attention would have read; 1 where nothing was decoded.
double KvReadFraction(const v1::KvRead& read);

}  // namespace asynctls
