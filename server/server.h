// SPDX-License-Identifier: Apache-2.0
// Server: every port of the process and what is behind them, but for the engine. The ports are open
// while the model loads: health says so, and calls are answered UNAVAILABLE.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "asynctls/v1/config.pb.h"
#include "engine/engine.h"
#include "engine/metrics/metrics.h"
#include "engine/text/tokenizer.h"
#include "prometheus/registry.h"
#include "server/frontend/frontend.h"
#include "server/frontend/health.h"
#include "server/grpc/grpc_server.h"
#include "server/grpc/kserve_service.h"
#include "server/grpc/native_service.h"
#include "server/grpc/vllm_service.h"
#include "server/http/http_server.h"
#include "server/http/http_service.h"
#include "server/metrics_listener.h"

namespace asynctls {

class Server {
 public:
  // `metrics` outlives the server. Errors: UNAVAILABLE naming the address that cannot be bound.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      const v1::ServerConfig& config,
      Metrics& metrics,
      const std::shared_ptr<prometheus::Registry>& registry);

  // Once: the model is there. The references outlive the server.
  void Open(Frontend::Options options, Engine& engine, const Tokenizer& tokenizer);

  int grpc_port() const { return grpc_->port(); }
  int metrics_port() const { return metrics_listener_ ? metrics_listener_->port() : 0; }
  int http_port() const { return http_ ? http_->port() : 0; }
  Frontend& frontend() { return frontend_; }

  // To be called every second or so. False: the engine is dead.
  bool UpdateHealth();

  // Not ready, no new requests; running ones go on for at most `limit`, then end with UNAVAILABLE.
  // Returns when all calls have ended. Once, after Open.
  void Drain(absl::Duration limit);

 private:
  Server(const v1::ServerConfig& config,
         Metrics& metrics,
         const std::shared_ptr<prometheus::Registry>& registry);
  absl::Status StartHttp();

  const v1::ServerConfig config_;
  Metrics& metrics_;
  const std::shared_ptr<prometheus::Registry> registry_;
  Frontend frontend_;
  HealthMonitor health_;
  NativeService native_service_{frontend_};
  VllmService vllm_service_;
  KserveService kserve_service_{frontend_, health_};
  std::unique_ptr<MetricsListener> metrics_listener_;
  std::unique_ptr<HttpService> http_service_;
  std::unique_ptr<GrpcServer> grpc_;  // these two end before what they serve
  std::unique_ptr<HttpServer> http_;
};

}  // namespace asynctls
