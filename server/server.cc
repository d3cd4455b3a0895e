// SPDX-License-Identifier: Apache-2.0
#include "server/server.h"

#include <utility>

#include "absl/memory/memory.h"
#include "engine/base/logging.h"

namespace asynctls {
namespace {

// What calls get to hand over their last bytes after the engine has ended them.
constexpr absl::Duration kHttpFlush = absl::Seconds(5);

HttpLimits HttpLimitsFrom(const v1::ServerConfig& config) {
  HttpLimits limits;
  limits.connections = static_cast<int>(config.max_connections());
  limits.body_bytes = uint64_t{config.max_message_mib()} << 20;
  limits.all_body_bytes = 16 * limits.body_bytes;
  return limits;
}

}  // namespace

Server::Server(const v1::ServerConfig& config, Metrics& metrics)
    : frontend_(metrics), health_(frontend_, absl::Seconds(config.stall_seconds())) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const v1::ServerConfig& config,
    Metrics& metrics,
    const std::shared_ptr<prometheus::Registry>& registry) {
  auto server = absl::WrapUnique(new Server(config, metrics));
  if (config.metrics_listen() != "none") {
    auto listener = MetricsListener::Start(config.metrics_listen(), registry);
    if (!listener.ok()) return listener.status();
    server->metrics_listener_ = *std::move(listener);
  }
  auto grpc = GrpcServer::Start(config, {&server->native_service_});
  if (!grpc.ok()) return grpc.status();
  server->grpc_ = *std::move(grpc);
  if (config.http_listen() != "none") {
    server->http_service_ =
        std::make_unique<HttpService>(server->frontend_, server->health_, registry);
    auto http = HttpServer::Start(config.http_listen(),
                                  HttpLimitsFrom(config),
                                  [service = server->http_service_.get()](
                                      HttpRequest request, std::shared_ptr<HttpCall> call) {
                                    service->Handle(std::move(request), std::move(call));
                                  });
    if (!http.ok()) return http.status();
    server->http_ = *std::move(http);
  }
  server->UpdateHealth();
  return server;
}

void Server::Open(Frontend::Options options, Engine& engine, const Tokenizer& tokenizer) {
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
  if (http_ != nullptr) http_->Shutdown(kHttpFlush);
  grpc_->Shutdown();
  spdlog::info("drained");
}

}  // namespace asynctls
