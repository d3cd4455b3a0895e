// SPDX-License-Identifier: Apache-2.0
// CallInfo: what the front end knows of a call beside its request.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "engine/metrics/metrics.h"

namespace asynctls {

inline const char* ProtocolName(Protocol protocol) {
  switch (protocol) {
    case Protocol::kGrpc:
      return "grpc";
    case Protocol::kVllm:
      return "vllm";
    case Protocol::kKserve:
      return "kserve";
    case Protocol::kOpenAi:
      return "openai";
  }
  return "";
}

struct CallInfo {
  Protocol protocol = Protocol::kGrpc;
  absl::Time deadline = absl::InfiniteFuture();
  // 32 hexadecimal digits of the caller's W3C traceparent; empty without one.
  std::string trace_id;
};

// The trace id of a traceparent header ("00-TRACE-SPAN-FLAGS"), empty when it is not one.
// https://www.w3.org/TR/trace-context/#traceparent-header
std::string TraceId(const std::string& traceparent);

}  // namespace asynctls
