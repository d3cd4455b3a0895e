// SPDX-License-Identifier: Apache-2.0
// Any bytes as inference.ModelInferRequest: no message, refused, or within every bound.
#include "server/grpc/kserve_request.h"
#include "tests/fuzz/request_limits.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  inference::ModelInferRequest request;
  if (!request.ParseFromArray(data, static_cast<int>(size))) return 0;
  auto translated = asynctls::FromInferRequest(request);
  if (!translated.ok()) {
    ASYNCTLS_CHECK(translated.status().message().size() < 4096);
    return 0;
  }
  translated->request.clear_model();
  asynctls::CheckResolved(translated->request);
  return 0;
}
