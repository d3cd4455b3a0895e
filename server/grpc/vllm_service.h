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

class VllmService final : public vllm::grpc::engine::VllmEngine::CallbackService {
 public:
  // `model_dir`: what is said of where the model is, and where GetTokenizer finds its files. The
  // references outlive the service.
  VllmService(Frontend& frontend, const HealthMonitor& health, std::string model_dir);

  grpc::ServerWriteReactor<vllm::grpc::engine::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context,
      const vllm::grpc::engine::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* context,
                                  const vllm::grpc::engine::EmbedRequest* request,
                                  vllm::grpc::engine::EmbedResponse* response) override;
  grpc::ServerUnaryReactor* HealthCheck(grpc::CallbackServerContext* context,
                                        const vllm::grpc::engine::HealthCheckRequest* request,
                                        vllm::grpc::engine::HealthCheckResponse* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const vllm::grpc::engine::AbortRequest* request,
                                  vllm::grpc::engine::AbortResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(
      grpc::CallbackServerContext* context,
      const vllm::grpc::engine::GetModelInfoRequest* request,
      vllm::grpc::engine::GetModelInfoResponse* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(
      grpc::CallbackServerContext* context,
      const vllm::grpc::engine::GetServerInfoRequest* request,
      vllm::grpc::engine::GetServerInfoResponse* response) override;
  grpc::ServerUnaryReactor* GetLoads(grpc::CallbackServerContext* context,
                                     const vllm::grpc::engine::GetLoadsRequest* request,
                                     vllm::grpc::engine::GetLoadsResponse* response) override;
  grpc::ServerWriteReactor<smg::grpc::common::GetTokenizerChunk>* GetTokenizer(
      grpc::CallbackServerContext* context,
      const smg::grpc::common::GetTokenizerRequest* request) override;
  grpc::ServerWriteReactor<smg::grpc::common::KvEventBatch>* SubscribeKvEvents(
      grpc::CallbackServerContext* context,
      const smg::grpc::common::SubscribeKvEventsRequest* request) override;

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
