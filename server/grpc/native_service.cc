// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/native_service.h"

#include <memory>
#include <string>
#include <utility>

#include "server/grpc/grpc_call.h"

namespace asynctls {
namespace {

class GenerateCall final : public StreamingCall<v1::GenerateResponse> {
 protected:
  bool Convert(v1::GenerateResponse& response, v1::GenerateResponse& out) override {
    out.Swap(&response);
    return true;
  }
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* NativeService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes) {
  const auto call = std::make_shared<GenerateCall>();
  call->Hold(call);
  const CallInfo info = CallInfoFrom(*context, Protocol::kGrpc);
  auto request = std::make_shared<v1::GenerateRequest>();
  const absl::Status parsed = ParseMessage(*bytes, *request);
  if (parsed.ok()) {
    frontend_.Generate(std::move(request), info, call);
  } else {
    frontend_.Refuse("", info, parsed, *call);
  }
  return call.get();
}

grpc::ServerUnaryReactor* NativeService::Tokenize(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return UnaryCall<v1::TokenizeRequest, v1::TokenizeResponse>(
      context, request, response, [this](const v1::TokenizeRequest& message, auto done) {
        frontend_.Tokenize(message, std::move(done));
      });
}

grpc::ServerUnaryReactor* NativeService::Detokenize(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  return UnaryCall<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      context, request, response, [this](const v1::DetokenizeRequest& message, auto done) {
        frontend_.Detokenize(message, std::move(done));
      });
}

grpc::ServerUnaryReactor* NativeService::GetModelInfo(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return UnaryCall<v1::GetModelInfoRequest, v1::GetModelInfoResponse>(
      context, request, response, [this](const v1::GetModelInfoRequest&, auto done) {
        done(frontend_.ModelInfo());
      });
}

grpc::ServerUnaryReactor* NativeService::GetLoad(grpc::CallbackServerContext* context,
                                                 const grpc::ByteBuffer* request,
                                                 grpc::ByteBuffer* response) {
  return UnaryCall<v1::GetLoadRequest, v1::GetLoadResponse>(
      context, request, response, [this](const v1::GetLoadRequest&, auto done) {
        done(frontend_.Load());
      });
}

grpc::ServerUnaryReactor* NativeService::Abort(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* request,
                                               grpc::ByteBuffer* response) {
  return UnaryCall<v1::AbortRequest, v1::AbortResponse>(
      context, request, response, [this](const v1::AbortRequest& message, auto done) {
        for (const std::string& id : message.request_ids()) frontend_.Abort(id);
        done(v1::AbortResponse());
      });
}

}  // namespace asynctls
