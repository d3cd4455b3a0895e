// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_server.h"

#include <chrono>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace asynctls {
namespace {

// What calls without a generation get to end by themselves; Watch never does.
constexpr std::chrono::milliseconds kLinger(200);
// Calls of one connection that are not generations: health, tokenize, abort.
constexpr int kOtherCalls = 64;
// Of one call's headers together; gRPC ends larger ones with RESOURCE_EXHAUSTED, and may end their
// connection.
constexpr int kMaxMetadataBytes = 16 << 10;
constexpr const char* kReadinessNames[] = {"readiness",
                                           "asynctls.v1.GenerationService",
                                           "vllm.grpc.engine.VllmEngine",
                                           "inference.GRPCInferenceService"};

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

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(
    const v1::ServerConfig& config,
    const std::vector<grpc::Service*>& services,
    const std::string& http_hint) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto server = absl::WrapUnique(new GrpcServer());
  FrontDoor::Options door;
  door.listen = config.listen();
  door.max_connections = config.max_connections();
  door.http_hint = http_hint;
  auto listening = FrontDoor::Listen(std::move(door));
  if (!listening.ok()) return listening.status();
  server->door_ = *std::move(listening);
  grpc::ServerBuilder builder;
  auto acceptor = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
      grpc::InsecureServerCredentials());
  for (grpc::Service* service : services) builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(static_cast<int>(config.max_message_mib()) << 20);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(
      GRPC_ARG_MAX_CONCURRENT_STREAMS,
      static_cast<int>(config.max_sequences() + config.max_waiting_requests()) + kOtherCalls);
  SetKeepAlive(builder);
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr) return absl::UnavailableError("the gRPC server cannot start");
  server->door_->Open([acceptor = std::move(acceptor)](int fd) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
    connection.fd = fd;
    acceptor->HandleNewConnection(&connection);
  });
  return server;
}

GrpcServer::~GrpcServer() {
  if (server_ == nullptr) return;
  door_->Close();
  server_->Shutdown(std::chrono::system_clock::now());
}

void GrpcServer::SetHealth(const Health& health) {
  const std::tuple now(health.live, health.started, health.ready);
  std::lock_guard lock(mu_);
  if (now == told_) return;  // gRPC would tell every Watch again
  told_ = now;
  grpc::HealthCheckServiceInterface* service = server_->GetHealthCheckService();
  for (const char* name : {"", "liveness"}) service->SetServingStatus(name, health.live);
  service->SetServingStatus("startup", health.started);
  for (const char* name : kReadinessNames) service->SetServingStatus(name, health.ready);
}

void GrpcServer::Shutdown() {
  door_->Close();
  server_->Shutdown(std::chrono::system_clock::now() + kLinger);
}

}  // namespace asynctls
