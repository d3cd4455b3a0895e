// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_call.h"

#include <chrono>
#include <string>

namespace asynctls {

CallInfo CallInfoFrom(const grpc::CallbackServerContext& context, Protocol protocol) {
  CallInfo call;
  call.protocol = protocol;
  const auto deadline = context.deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    call.deadline = absl::FromChrono(deadline);
  }
  const auto found = context.client_metadata().find("traceparent");
  if (found != context.client_metadata().end()) {
    call.trace_id = TraceId(std::string(found->second.data(), found->second.size()));
  }
  return call;
}

}  // namespace asynctls
