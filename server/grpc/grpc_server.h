// SPDX-License-Identifier: Apache-2.0
// GrpcServer: the port, with the services, grpc.health.v1 and reflection on it.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "asynctls/v1/config.pb.h"
#include "grpcpp/server.h"
#include "server/frontend/health.h"
#include "server/grpc/front_door.h"

namespace asynctls {

// Health names: "" and "liveness": the process is worth keeping; "startup": the model is there;
// "readiness" and the full name of every service: requests are admitted.
class GrpcServer {
 public:
  // Uses listen, max_message_mib, max_sequences, max_waiting_requests and max_connections of
  // `config`. `services` outlive the server. `http_hint`: where HTTP is served, for people who came
  // to the wrong port; may be empty. Errors: UNAVAILABLE naming the address.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(
      const v1::ServerConfig& config,
      const std::vector<grpc::Service*>& services,
      const std::string& http_hint = "");
  // Ends what is left at once.
  ~GrpcServer();

  int port() const { return door_->port(); }

  // Tells watchers what has changed. Any thread.
  void SetHealth(const Health& health);

  // No new calls; those that are left (a health Watch, an idle ModelStreamInfer) are ended after a
  // moment: to be called when no generation is under way. Returns when all have ended.
  void Shutdown();

 private:
  GrpcServer() = default;

  std::unique_ptr<FrontDoor> door_;
  std::unique_ptr<grpc::Server> server_;

  std::mutex mu_;                                     // guards what follows
  std::optional<std::tuple<bool, bool, bool>> told_;  // live, started, ready
};

}  // namespace asynctls
