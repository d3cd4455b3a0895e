// SPDX-License-Identifier: Apache-2.0
// Client: a channel and the calls the subcommands need, with absl::Status and a callback for the
// streamed events. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "asynctls/v1/generation.grpc.pb.h"
#include "engine/base/json.h"

namespace asynctls {

// A whole reply. Times are this side's.
struct Reply {
  std::string text;
  v1::Started started;
  v1::Finished finished;
  absl::Duration first_token;  // from the call to the first Delta; to the end without any
  absl::Duration total;
};

class Client {
 public:
  using OnEvent = std::function<void(const v1::GenerateResponse&)>;

  // Does not connect yet.
  explicit Client(const std::string& target);

  // Blocks until the stream has ended. `on_event` is called for each message as it arrives. Errors:
  // the call's status; DATA_LOSS when the stream ended well but without exactly one Finished.
  absl::StatusOr<Reply> Generate(const v1::GenerateRequest& request,
                                 const OnEvent& on_event,
                                 absl::Time deadline = absl::InfiniteFuture());
  absl::StatusOr<v1::GetModelInfoResponse> GetModelInfo();

 private:
  std::unique_ptr<v1::GenerationService::Stub> stub_;
};

// [{"role","content"},..] as chat messages. Errors: INVALID_ARGUMENT, starting with `origin`.
absl::StatusOr<v1::ChatMessages> ParseMessages(const Json& json, const std::string& origin);

// Bytes of KV read beside what dense attention would have read; 1 where nothing was decoded.
double KvReadFraction(const v1::KvRead& read);

}  // namespace asynctls
