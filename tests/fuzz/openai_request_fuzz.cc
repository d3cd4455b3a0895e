// SPDX-License-Identifier: Apache-2.0
// Any bytes as the bodies of OpenAI's and vLLM's HTTP requests: no JSON, refused, or within every
// bound.
#include "server/http/http_error.h"
#include "server/http/openai_request.h"
#include "tests/fuzz/request_limits.h"

namespace {

void CheckRefused(const absl::Status& status) {
  ASYNCTLS_CHECK(!status.ok() && status.message().size() < 4096);
  const int code = asynctls::ErrorResponse(status).status;
  ASYNCTLS_CHECK(code >= 400 && code < 500);
}

void CheckGeneration(const absl::StatusOr<asynctls::OpenAiRequest>& request) {
  if (!request.ok()) return CheckRefused(request.status());
  const size_t prompts = request->prompts.size();
  ASYNCTLS_CHECK(prompts >= 1 && prompts <= size_t{asynctls::kMaxPrompts});
  for (const auto& prompt : request->prompts) asynctls::CheckResolved(*prompt);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string body(reinterpret_cast<const char*>(data), size);
  CheckGeneration(asynctls::ParseChatRequest(body));
  CheckGeneration(asynctls::ParseCompletionRequest(body));
  const auto tokenize = asynctls::ParseTokenizeRequest(body);
  if (!tokenize.ok()) CheckRefused(tokenize.status());
  const auto detokenize = asynctls::ParseDetokenizeRequest(body);
  if (!detokenize.ok()) CheckRefused(detokenize.status());
  return 0;
}
