// SPDX-License-Identifier: Apache-2.0
// asynctls.v1.GenerationService on gRPC's callback API: the front end, as it is.
#pragma once

#include "asynctls/v1/generation.grpc.pb.h"
#include "server/frontend/frontend.h"

namespace asynctls {

// The methods below take raw bytes (see grpc_call.h).
template <class Base>
using RawGenerationService = v1::GenerationService::WithRawCallbackMethod_Generate<
    v1::GenerationService::WithRawCallbackMethod_Tokenize<
        v1::GenerationService::WithRawCallbackMethod_Detokenize<
            v1::GenerationService::WithRawCallbackMethod_GetModelInfo<
                v1::GenerationService::WithRawCallbackMethod_GetLoad<
                    v1::GenerationService::WithRawCallbackMethod_Abort<Base>>>>>>;

class NativeService final : public RawGenerationService<v1::GenerationService::Service> {
 public:
  // `frontend` outlives the service.
  explicit NativeService(Frontend& frontend) : frontend_(frontend) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;

 private:
  Frontend& frontend_;
};

}  // namespace asynctls
