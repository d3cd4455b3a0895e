// SPDX-License-Identifier: Apache-2.0
#include "client/client.h"

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

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace

Client::Client(const std::string& target) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetMaxReceiveMessageSize(INT_MAX);
  stub_ = v1::GenerationService::NewStub(
      grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments));
}

absl::StatusOr<Reply> Client::Generate(const v1::GenerateRequest& request,
                                       const OnEvent& on_event,
                                       absl::Time deadline) {
  grpc::ClientContext context;
  if (deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(deadline));
  const absl::Time start = absl::Now();
  auto reader = stub_->Generate(&context, request);
  Reply reply;
  std::optional<absl::Time> first;
  int finished = 0;
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    if (message.has_started()) reply.started = message.started();
    if (message.has_delta()) {
      if (!first.has_value()) first = absl::Now();
      reply.text += message.delta().text();
    }
    if (message.has_finished()) {
      reply.finished = message.finished();
      ++finished;
    }
    on_event(message);
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return FromGrpc(status);
  if (finished != 1) {
    return absl::DataLossError(absl::StrCat("the stream had ", finished, " Finished messages"));
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
