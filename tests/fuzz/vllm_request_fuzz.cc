// SPDX-License-Identifier: Apache-2.0
// Any bytes as vllm.grpc.engine.GenerateRequest: no message, refused, or within every bound.
#include "server/grpc/vllm_request.h"
#include "tests/fuzz/request_limits.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  vllm::grpc::engine::GenerateRequest request;
  if (!request.ParseFromArray(data, static_cast<int>(size))) return 0;
  const auto translated = asynctls::FromVllmRequest(request);
  if (translated.ok()) asynctls::CheckResolved(*translated);
  if (!translated.ok()) ASYNCTLS_CHECK(translated.status().message().size() < 4096);
  return 0;
}
