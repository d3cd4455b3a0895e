// SPDX-License-Identifier: Apache-2.0
// vllm.grpc.engine.VllmEngine on gRPC's callback API: a thin adapter to the front end.
#pragma once

#include <atomic>
#include <string>

#include "absl/time/time.h"
#include "server/frontend/frontend.h"
#include "server/frontend/health.h"
#include "server/grpc/tokenizer_archive.h"
#include "vllm/grpc/engine/vllm_engine.grpc.pb.h"

namespace asynctls {

// Every method takes raw bytes (see grpc_call.h).
template <class Base>
using RawVllmEngine = vllm::grpc::engine::VllmEngine::WithRawCallbackMethod_Generate<
    vllm::grpc::engine::VllmEngine::WithRawCallbackMethod_Embed<
        vllm::grpc::engine::VllmEngine::WithRawCallbackMethod_HealthCheck<
            vllm::grpc::engine::VllmEngine::WithRawCallbackMethod_Abort<
                vllm::grpc::engine::VllmEngine::WithRawCallbackMethod_GetModelInfo<
                    vllm::grpc::engine::VllmEngine::WithRawCallbackMethod_GetServerInfo<
                        vllm::grpc::engine::VllmEngine::WithRawCallbackMethod_GetLoads<
                            vllm::grpc::engine::VllmEngine::WithRawCallbackMethod_GetTokenizer<
                                vllm::grpc::engine::VllmEngine::
                                    WithRawCallbackMethod_SubscribeKvEvents<Base>>>>>>>>>;

class VllmService final : public RawVllmEngine<vllm::grpc::engine::VllmEngine::Service> {
 public:
  // `model_dir`: what is said of where the model is, and where GetTokenizer finds its files. The
  // references outlive the service.
  VllmService(Frontend& frontend, const HealthMonitor& health, std::string model_dir);

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* HealthCheck(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetLoads(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GetTokenizer(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* SubscribeKvEvents(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;

 private:
  absl::StatusOr<vllm::grpc::engine::GetModelInfoResponse> ModelInfo() const;
  absl::StatusOr<vllm::grpc::engine::GetServerInfoResponse> ServerInfo() const;
  absl::StatusOr<vllm::grpc::engine::GetLoadsResponse> Loads(
      const vllm::grpc::engine::GetLoadsRequest& request) const;

  Frontend& frontend_;
  const HealthMonitor& health_;
  const std::string model_dir_;
  const absl::Time started_;
  TokenizerArchive archive_;
  std::atomic<int64_t> received_micros_{0};  // when the last Generate came, since 1970
};

}  // namespace asynctls
