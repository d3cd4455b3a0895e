// SPDX-License-Identifier: Apache-2.0
// GrpcServer: the port, with the generation service, grpc.health.v1 and reflection on it, and the
// way out (drain).
#pragma once

#include <memory>
#include <mutex>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "asynctls/v1/config.pb.h"
#include "engine/engine.h"
#include "grpcpp/server.h"
#include "server/inference_service.h"

namespace asynctls {

// Health names: "" and "liveness" say that the process is worth keeping; "readiness" and the
// service's full name that it admits requests.
class GrpcServer {
 public:
  // Uses listen, max_message_mib, max_sequences and max_waiting_requests of `config`. `service` and
  // `engine` outlive the server. Errors: UNAVAILABLE naming the address.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const v1::ServerConfig& config,
                                                           InferenceService& service,
                                                           Engine& engine);
  // Ends what is left at once.
  ~GrpcServer();

  int port() const { return port_; }

  // Looks at the engine and sets the health names; to be called every second or so. False: the
  // engine is dead.
  bool UpdateHealth();

  // Not ready, no new requests; running ones go on for at most `limit`, then end with UNAVAILABLE.
  // Returns when all calls have ended. Once.
  void Drain(absl::Duration limit);

 private:
  GrpcServer(InferenceService& service, Engine& engine) : service_(service), engine_(engine) {}

  void SetHealth(bool live, bool ready);

  InferenceService& service_;
  Engine& engine_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;

  std::mutex mu_;  // guards what follows
  bool draining_ = false;
  int64_t seen_steps_ = 0;
  absl::Time moved_at_;  // when the engine last was idle or had done a step
};

}  // namespace asynctls
