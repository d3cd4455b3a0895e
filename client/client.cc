// SPDX-License-Identifier: Apache-2.0
#include "client/client.h"

#include <algorithm>
#include <climits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/channel.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"

namespace asynctls {
namespace {

// Adds a message to the sequence it belongs to. Errors: DATA_LOSS for an index that was not asked
// for or a second Finished.
absl::Status Take(const v1::GenerateResponse& message,
                  GenerateReply& reply,
                  std::vector<bool>& finished) {
  if (message.has_started()) reply.started = message.started();
  if (message.has_prompt_log_probs()) reply.prompt.MergeFrom(message.prompt_log_probs());
  if (!message.has_delta() && !message.has_finished()) return absl::OkStatus();
  const uint32_t index = message.has_delta() ? message.delta().index() : message.finished().index();
  if (index >= reply.choices.size() || finished[index]) {
    return absl::DataLossError(
        absl::StrCat("the stream had an event too many of sequence ", index));
  }
  Choice& choice = reply.choices[index];
  if (message.has_delta()) {
    choice.text += message.delta().text();
    choice.tokens.MergeFrom(message.delta());
  } else {
    choice.finished = message.finished();
    finished[index] = true;
  }
  return absl::OkStatus();
}

}  // namespace

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target, int id) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetMaxReceiveMessageSize(INT_MAX);
  arguments.SetInt("asynctls.channel_id", id);  // channels of equal arguments share a connection
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

void Canceller::Cancel() {
  std::lock_guard lock(mu_);
  cancelled_ = true;
  if (context_ != nullptr) context_->TryCancel();
}

void Canceller::Watch(grpc::ClientContext* context) {
  std::lock_guard lock(mu_);
  context_ = context;
  if (cancelled_ && context_ != nullptr) context_->TryCancel();
}

Client::Client(const std::string& target)
    : stub_(v1::GenerationService::NewStub(MakeChannel(target))) {}

absl::StatusOr<GenerateReply> Client::Generate(const v1::GenerateRequest& request,
                                               const OnEvent& on_event,
                                               const CallOptions& options) {
  grpc::ClientContext context;
  if (options.deadline != absl::InfiniteFuture()) {
    context.set_deadline(absl::ToChronoTime(options.deadline));
  }
  const absl::Time start = absl::Now();
  auto reader = stub_->Generate(&context, request);
  if (options.canceller != nullptr) options.canceller->Watch(&context);
  GenerateReply reply;
  reply.choices.resize(std::max(1u, request.sampling().n()));
  std::vector<bool> finished(reply.choices.size());
  std::optional<absl::Time> first;
  absl::Status events;
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    if (message.has_delta() && !first.has_value()) first = absl::Now();
    events.Update(Take(message, reply, finished));
    on_event(message);
  }
  const grpc::Status status = reader->Finish();
  if (options.canceller != nullptr) options.canceller->Watch(nullptr);
  if (!status.ok()) return FromGrpc(status);
  if (!events.ok()) return events;
  const auto missing = std::find(finished.begin(), finished.end(), false);
  if (missing != finished.end()) {
    return absl::DataLossError(
        absl::StrCat("the stream ended without Finished of sequence ", missing - finished.begin()));
  }
  const absl::Time end = absl::Now();
  reply.first_token = first.value_or(end) - start;
  reply.total = end - start;
  return reply;
}

absl::StatusOr<v1::GetModelInfoResponse> Client::GetModelInfo() {
  grpc::ClientContext context;
  v1::GetModelInfoResponse response;
  const grpc::Status status = stub_->GetModelInfo(&context, v1::GetModelInfoRequest(), &response);
  if (!status.ok()) return FromGrpc(status);
  return response;
}

absl::StatusOr<v1::ChatMessages> ParseMessages(const Json& json, const std::string& origin) {
  if (!json.is_array() || json.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": messages must be a list"));
  }
  v1::ChatMessages out;
  for (const Json& message : json) {
    for (const char* key : {"role", "content"}) {
      if (!message.is_object() || !message.contains(key) || !message[key].is_string()) {
        return absl::InvalidArgumentError(
            absl::StrCat(origin, ": message ", out.messages_size(), " has no text '", key, "'"));
      }
    }
    v1::ChatMessage& added = *out.add_messages();
    added.set_role(message["role"].get<std::string>());
    added.set_content(message["content"].get<std::string>());
  }
  return out;
}

double KvReadFraction(const v1::KvRead& read) {
  if (read.dense_bytes() == 0) return 1;
  return static_cast<double>(read.bytes()) / static_cast<double>(read.dense_bytes());
}

}  // namespace asynctls
