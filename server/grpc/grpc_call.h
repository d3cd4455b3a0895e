// SPDX-License-Identifier: Apache-2.0
// What the gRPC services share: a call's CallInfo, messages read and written by ourselves, and the
// reactor that writes a generation's answers in a service's own message type.
//
// Services take raw bytes (WithRawCallbackMethod_X): gRPC 1.51 answers a message that cannot be
// parsed with UNIMPLEMENTED, which sends a client with broken text looking for another server.
#pragma once

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/stubs/logging.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "server/frontend/call_info.h"
#include "server/frontend/errors.h"
#include "server/frontend/generation.h"
#include "server/frontend/response_writer.h"
#include "server/grpc/grpc_status.h"

namespace asynctls {

CallInfo CallInfoFrom(const grpc::CallbackServerContext& context, Protocol protocol);

// Errors: INVALID_ARGUMENT naming the message's type.
template <class Message>
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, Message& out) {
  const google::protobuf::LogSilencer quiet;  // a bad message is not worth a line each
  grpc::ByteBuffer copy(bytes);               // of the references; parsing lets go of them
  if (grpc::SerializationTraits<Message>::Deserialize(&copy, &out).ok()) return absl::OkStatus();
  return WithReason(
      absl::InvalidArgumentError(absl::StrCat("the bytes are no ",
                                              Message::descriptor()->full_name(),
                                              ": broken encoding, or text that is not UTF-8")),
      "MALFORMED_MESSAGE");
}

template <class Message>
void SerializeMessage(const Message& message, grpc::ByteBuffer& out) {
  out.Clear();
  bool own = false;
  grpc::SerializationTraits<Message>::Serialize(message, &out, &own);
}

// Answers a unary call. `method` is called with the parsed request and with a function that takes
// the StatusOr<Response>, now or later; the request lives until then.
template <class Request, class Response, class Method>
grpc::ServerUnaryReactor* UnaryCall(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* bytes,
                                    grpc::ByteBuffer* response,
                                    Method method) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  auto request = std::make_unique<Request>();
  const absl::Status parsed = ParseMessage(*bytes, *request);
  if (!parsed.ok()) {
    reactor->Finish(ToGrpcStatus(parsed));
    return reactor;
  }
  const Request& message = *request;
  method(message,
         [reactor, response, request = std::move(request)](absl::StatusOr<Response> result) {
           if (result.ok()) SerializeMessage(*result, *response);
           reactor->Finish(ToGrpcStatus(result.status()));
         });
  return reactor;
}

// Held by gRPC until OnDone and by its generation until Finish. To be made with make_shared and
// told so with Hold.
template <class Response>
class StreamingCall : public grpc::ServerWriteReactor<grpc::ByteBuffer>, public ResponseWriter {
 public:
  void Hold(std::shared_ptr<StreamingCall> self) { self_ = std::move(self); }

  bool Write(v1::GenerateResponse& response) final {
    if (!Convert(response, response_)) return true;
    SerializeMessage(response_, bytes_);
    StartWrite(&bytes_);
    return false;
  }
  void Finish(const absl::Status& status) final {
    grpc::ServerWriteReactor<grpc::ByteBuffer>::Finish(ToGrpcStatus(Renamed(status)));
  }

  void OnWriteDone(bool ok) override { generation()->WriteDone(ok); }
  void OnCancel() override {
    if (generation() != nullptr) generation()->ClientGone();
  }
  void OnDone() override { std::shared_ptr<StreamingCall> last = std::move(self_); }

 protected:
  // Fills `out`, which may hold the message before; false: nothing is to be written for `response`.
  virtual bool Convert(v1::GenerateResponse& response, Response& out) = 0;
  // An error of the front end with the field names of the protocol.
  virtual absl::Status Renamed(const absl::Status& status) const { return status; }

 private:
  Response response_;
  grpc::ByteBuffer bytes_;  // the write in flight
  std::shared_ptr<StreamingCall> self_;
};

}  // namespace asynctls
