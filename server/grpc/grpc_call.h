// SPDX-License-Identifier: Apache-2.0
// What the gRPC services share: a call's CallInfo, and the reactor that writes a generation's
// answers in a service's own message type.
#pragma once

#include <memory>
#include <utility>

#include "grpcpp/support/server_callback.h"
#include "server/frontend/call_info.h"
#include "server/frontend/generation.h"
#include "server/frontend/response_writer.h"
#include "server/grpc/grpc_status.h"

namespace asynctls {

CallInfo CallInfoFrom(const grpc::CallbackServerContext& context, Protocol protocol);

// Held by gRPC until OnDone and by its generation until Finish. To be made with make_shared and
// told so with Hold.
template <class Response>
class StreamingCall : public grpc::ServerWriteReactor<Response>, public ResponseWriter {
 public:
  void Hold(std::shared_ptr<StreamingCall> self) { self_ = std::move(self); }

  bool Write(v1::GenerateResponse& response) final {
    if (!Convert(response, response_)) return true;
    this->StartWrite(&response_);
    return false;
  }
  void Finish(const absl::Status& status) final {
    grpc::ServerWriteReactor<Response>::Finish(ToGrpcStatus(status));
  }

  void OnWriteDone(bool ok) override { generation()->WriteDone(ok); }
  void OnCancel() override {
    if (generation() != nullptr) generation()->ClientGone();
  }
  void OnDone() override { std::shared_ptr<StreamingCall> last = std::move(self_); }

 protected:
  // Fills `out`, which may hold the message before; false: nothing is to be written for `response`.
  virtual bool Convert(v1::GenerateResponse& response, Response& out) = 0;

 private:
  Response response_;  // the write in flight
  std::shared_ptr<StreamingCall> self_;
};

}  // namespace asynctls
