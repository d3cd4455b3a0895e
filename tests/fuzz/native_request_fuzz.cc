// SPDX-License-Identifier: Apache-2.0
// Any bytes as asynctls.v1.GenerateRequest: no message, refused, or within every bound.
#include "tests/fuzz/request_limits.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  asynctls::v1::GenerateRequest request;
  if (request.ParseFromArray(data, static_cast<int>(size))) asynctls::CheckResolved(request);
  return 0;
}
