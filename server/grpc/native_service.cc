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

// Answers a unary call with what there is now.
template <class Response>
grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context,
                                 absl::StatusOr<Response> result,
                                 Response* response) {
  if (result.ok()) *response = *std::move(result);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(result.status()));
  return reactor;
}

// Answers it later.
template <class Response>
auto AnswerLater(grpc::ServerUnaryReactor* reactor, Response* response) {
  return [reactor, response](absl::StatusOr<Response> result) {
    if (result.ok()) *response = *std::move(result);
    reactor->Finish(ToGrpcStatus(result.status()));
  };
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* NativeService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  const auto call = std::make_shared<GenerateCall>();
  call->Hold(call);
  // gRPC keeps the request as long as the call.
  frontend_.Generate(std::shared_ptr<const v1::GenerateRequest>(call, request),
                     CallInfoFrom(*context, Protocol::kGrpc),
                     call);
  return call.get();
}

grpc::ServerUnaryReactor* NativeService::Tokenize(grpc::CallbackServerContext* context,
                                                  const v1::TokenizeRequest* request,
                                                  v1::TokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  frontend_.Tokenize(*request, AnswerLater(reactor, response));
  return reactor;
}

grpc::ServerUnaryReactor* NativeService::Detokenize(grpc::CallbackServerContext* context,
                                                    const v1::DetokenizeRequest* request,
                                                    v1::DetokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  frontend_.Detokenize(*request, AnswerLater(reactor, response));
  return reactor;
}

grpc::ServerUnaryReactor* NativeService::GetModelInfo(grpc::CallbackServerContext* context,
                                                      const v1::GetModelInfoRequest*,
                                                      v1::GetModelInfoResponse* response) {
  return Answer(context, frontend_.ModelInfo(), response);
}

grpc::ServerUnaryReactor* NativeService::GetLoad(grpc::CallbackServerContext* context,
                                                 const v1::GetLoadRequest*,
                                                 v1::GetLoadResponse* response) {
  return Answer(context, frontend_.Load(), response);
}

grpc::ServerUnaryReactor* NativeService::Abort(grpc::CallbackServerContext* context,
                                               const v1::AbortRequest* request,
                                               v1::AbortResponse*) {
  for (const std::string& id : request->request_ids()) frontend_.Abort(id);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace asynctls
