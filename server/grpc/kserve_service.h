// SPDX-License-Identifier: Apache-2.0
// inference.GRPCInferenceService, KServe's Open Inference Protocol v2 with Triton's streaming, on
// gRPC's callback API: a thin adapter to the front end.
#pragma once

#include "inference/grpc_service.grpc.pb.h"
#include "server/frontend/frontend.h"
#include "server/frontend/health.h"

namespace asynctls {

// Every method takes raw bytes (see grpc_call.h).
template <class Base>
using RawInferenceService = inference::GRPCInferenceService::WithRawCallbackMethod_ServerLive<
    inference::GRPCInferenceService::WithRawCallbackMethod_ServerReady<
        inference::GRPCInferenceService::WithRawCallbackMethod_ModelReady<
            inference::GRPCInferenceService::WithRawCallbackMethod_ServerMetadata<
                inference::GRPCInferenceService::WithRawCallbackMethod_ModelMetadata<
                    inference::GRPCInferenceService::WithRawCallbackMethod_ModelConfig<
                        inference::GRPCInferenceService::WithRawCallbackMethod_RepositoryIndex<
                            inference::GRPCInferenceService::WithRawCallbackMethod_ModelInfer<
                                inference::GRPCInferenceService::
                                    WithRawCallbackMethod_ModelStreamInfer<Base>>>>>>>>>;

class KserveService final : public RawInferenceService<inference::GRPCInferenceService::Service> {
 public:
  // Both outlive the service.
  KserveService(Frontend& frontend, const HealthMonitor& health)
      : frontend_(frontend), health_(health) {}

  grpc::ServerUnaryReactor* ServerLive(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ServerReady(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ModelReady(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ServerMetadata(grpc::CallbackServerContext* context,
                                           const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ModelMetadata(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ModelConfig(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* RepositoryIndex(grpc::CallbackServerContext* context,
                                            const grpc::ByteBuffer* request,
                                            grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ModelInfer(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ModelStreamInfer(
      grpc::CallbackServerContext* context) override;

 private:
  // Errors: NOT_FOUND for a name or version that is not served.
  absl::Status CheckModel(const std::string& name, const std::string& version) const;

  Frontend& frontend_;
  const HealthMonitor& health_;
};

}  // namespace asynctls
