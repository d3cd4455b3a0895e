// SPDX-License-Identifier: Apache-2.0
#include "server/server.h"

#include <utility>

#include "absl/memory/memory.h"
#include "absl/time/clock.h"
#include "engine/base/host_port.h"
#include "engine/base/logging.h"
#include "engine/metrics/vllm_aliases.h"

namespace asynctls {
namespace {

// What calls get to hand over their last bytes after the engine has ended them.
constexpr absl::Duration kFlush = absl::Seconds(5);

HttpLimits HttpLimitsFrom(const v1::ServerConfig& config) {
  HttpLimits limits;
  limits.connections = static_cast<int>(config.max_connections());
  limits.body_bytes = uint64_t{config.max_message_mib()} << 20;
  limits.all_body_bytes = 16 * limits.body_bytes;
  return limits;
}

}  // namespace

Server::Server(const v1::ServerConfig& config,
               Metrics& metrics,
               const std::shared_ptr<prometheus::Registry>& registry)
    : config_(config),
      metrics_(metrics),
      registry_(registry),
      frontend_(metrics),
      health_(frontend_, absl::Seconds(config.stall_seconds())),
      vllm_service_(frontend_, health_, config.model()) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const v1::ServerConfig& config,
    Metrics& metrics,
    const std::shared_ptr<prometheus::Registry>& registry) {
  auto server = absl::WrapUnique(new Server(config, metrics, registry));
  metrics.SetBuild(ServerVersion());
  if (config.metrics_listen() != "none") {
    auto listener = MetricsListener::Start(config.metrics_listen(), registry);
    if (!listener.ok()) return listener.status();
    server->metrics_listener_ = *std::move(listener);
  }
  const absl::Status http = server->StartHttp();
  if (!http.ok()) return http;
  auto grpc = GrpcServer::Start(
      config,
      {&server->native_service_, &server->vllm_service_, &server->kserve_service_},
      server->http_ == nullptr ? "" : WithPort(config.http_listen(), server->http_port()));
  if (!grpc.ok()) return grpc.status();
  server->grpc_ = *std::move(grpc);
  server->UpdateHealth();
  return server;
}

absl::Status Server::StartHttp() {
  if (config_.http_listen() == "none") return absl::OkStatus();
  http_service_ = std::make_unique<HttpService>(frontend_, health_, registry_);
  const auto handler = [service = http_service_.get()](HttpRequest request,
                                                       std::shared_ptr<HttpCall> call) {
    service->Handle(std::move(request), std::move(call));
  };
  auto http = HttpServer::Start(config_.http_listen(), HttpLimitsFrom(config_), handler);
  if (!http.ok()) return http.status();
  http_ = *std::move(http);
  return absl::OkStatus();
}

void Server::Open(Frontend::Options options, Engine& engine, const Tokenizer& tokenizer) {
  const v1::ModelInfo& model = options.limits.model;
  metrics_.SetModel(model.name(), model.architecture());
  if (config_.metrics_compat() == "vllm") {
    const auto aliases = std::make_shared<VllmAliases>(registry_, model.name());
    if (metrics_listener_ != nullptr) metrics_listener_->Add(aliases);
    if (http_service_ != nullptr) http_service_->AddMetrics(aliases);
  }
  frontend_.Open(std::move(options), engine, tokenizer);
  UpdateHealth();
}

bool Server::UpdateHealth() {
  frontend_.SampleRates(absl::Now());
  const Health health = health_.Update();
  grpc_->SetHealth(health);
  return health.live;
}

void Server::Drain(absl::Duration limit) {
  health_.StartDraining();
  frontend_.StopAdmitting();
  UpdateHealth();
  spdlog::info("draining for at most {} s", absl::ToInt64Seconds(limit));
  if (const auto serving = frontend_.serving(); serving.ok()) (*serving)->engine.Drain(limit);
  const absl::Time flushed = absl::Now() + kFlush;
  frontend_.WaitForCalls(kFlush);
  if (http_ != nullptr) http_->Shutdown(flushed - absl::Now());
  grpc_->Shutdown();
  spdlog::info("drained");
}

}  // namespace asynctls
