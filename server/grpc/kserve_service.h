// SPDX-License-Identifier: Apache-2.0
// inference.GRPCInferenceService, KServe's Open Inference Protocol v2 with Triton's streaming, on
// gRPC's callback API: a thin adapter to the front end.
#pragma once

#include "inference/grpc_service.grpc.pb.h"
#include "server/frontend/frontend.h"
#include "server/frontend/health.h"

namespace asynctls {

class KserveService final : public inference::GRPCInferenceService::CallbackService {
 public:
  // Both outlive the service.
  KserveService(Frontend& frontend, const HealthMonitor& health)
      : frontend_(frontend), health_(health) {}

  grpc::ServerUnaryReactor* ServerLive(grpc::CallbackServerContext* context,
                                       const inference::ServerLiveRequest* request,
                                       inference::ServerLiveResponse* response) override;
  grpc::ServerUnaryReactor* ServerReady(grpc::CallbackServerContext* context,
                                        const inference::ServerReadyRequest* request,
                                        inference::ServerReadyResponse* response) override;
  grpc::ServerUnaryReactor* ModelReady(grpc::CallbackServerContext* context,
                                       const inference::ModelReadyRequest* request,
                                       inference::ModelReadyResponse* response) override;
  grpc::ServerUnaryReactor* ServerMetadata(grpc::CallbackServerContext* context,
                                           const inference::ServerMetadataRequest* request,
                                           inference::ServerMetadataResponse* response) override;
  grpc::ServerUnaryReactor* ModelMetadata(grpc::CallbackServerContext* context,
                                          const inference::ModelMetadataRequest* request,
                                          inference::ModelMetadataResponse* response) override;
  grpc::ServerUnaryReactor* ModelConfig(grpc::CallbackServerContext* context,
                                        const inference::ModelConfigRequest* request,
                                        inference::ModelConfigResponse* response) override;
  grpc::ServerUnaryReactor* RepositoryIndex(grpc::CallbackServerContext* context,
                                            const inference::RepositoryIndexRequest* request,
                                            inference::RepositoryIndexResponse* response) override;
  grpc::ServerUnaryReactor* ModelInfer(grpc::CallbackServerContext* context,
                                       const inference::ModelInferRequest* request,
                                       inference::ModelInferResponse* response) override;
  grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>*
  ModelStreamInfer(grpc::CallbackServerContext* context) override;

 private:
  // Errors: NOT_FOUND for a name or version that is not served.
  absl::Status CheckModel(const std::string& name, const std::string& version) const;

  Frontend& frontend_;
  const HealthMonitor& health_;
};

}  // namespace asynctls
