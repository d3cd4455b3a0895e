// SPDX-License-Identifier: Apache-2.0
#include "server/grpc_server.h"

#include <chrono>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/logging.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace asynctls {
namespace {

// With requests in the engine and no step finished for this long, the server is not ready.
constexpr absl::Duration kStall = absl::Seconds(60);
// What calls get to hand over their last messages after the engine has ended them.
constexpr std::chrono::seconds kFlush(5);
// Calls of one connection that are not generations: health, tokenize, abort.
constexpr int kOtherCalls = 64;

// Clients ping a quiet connection (long prefill) every 30 s; gRPC's default answers the second
// such ping with GOAWAY.
void SetKeepAlive(grpc::ServerBuilder& builder) {
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);  // finds dead clients
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const v1::ServerConfig& config,
                                                              InferenceService& service,
                                                              Engine& engine) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto server = absl::WrapUnique(new GrpcServer(service, engine));
  const int max_bytes = static_cast<int>(config.max_message_mib()) << 20;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(config.listen(), grpc::InsecureServerCredentials(), &server->port_);
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(max_bytes > 0 ? max_bytes : INT32_MAX);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // or a second server would steal calls
  builder.AddChannelArgument(
      GRPC_ARG_MAX_CONCURRENT_STREAMS,
      static_cast<int>(config.max_sequences() + config.max_waiting_requests()) + kOtherCalls);
  SetKeepAlive(builder);
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || server->port_ == 0) {
    return absl::UnavailableError(absl::StrCat("listen ", config.listen(), " cannot be bound"));
  }
  server->UpdateHealth();
  return server;
}

GrpcServer::~GrpcServer() {
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
}

bool GrpcServer::UpdateHealth() {
  std::lock_guard lock(mu_);
  const Engine::Snapshot now = engine_.snapshot();
  const bool busy = now.running + now.waiting > 0;
  if (!busy || now.steps != seen_steps_) moved_at_ = absl::Now();
  seen_steps_ = now.steps;
  const bool stalled = absl::Now() - moved_at_ > kStall;
  SetHealth(now.healthy, now.healthy && !stalled && !draining_);
  return now.healthy;
}

void GrpcServer::SetHealth(bool live, bool ready) {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  for (const char* name : {"", "liveness"}) health->SetServingStatus(name, live);
  for (const char* name : {"readiness", v1::GenerationService::service_full_name()}) {
    health->SetServingStatus(name, ready);
  }
}

void GrpcServer::Drain(absl::Duration limit) {
  {
    std::lock_guard lock(mu_);
    draining_ = true;
  }
  service_.StopAdmitting();
  UpdateHealth();
  spdlog::info("draining for at most {} s", absl::ToInt64Seconds(limit));
  engine_.Drain(limit);
  server_->Shutdown(std::chrono::system_clock::now() + kFlush);
  spdlog::info("drained");
}

}  // namespace asynctls
