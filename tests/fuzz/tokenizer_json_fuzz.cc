// SPDX-License-Identifier: Apache-2.0
// Any bytes as tokenizer.json: refused, or a tokenizer whose ids lead back to the text.
#include "absl/strings/string_view.h"
#include "engine/base/check.h"
#include "engine/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace asynctls;
  const auto tokenizer =
      Tokenizer::Parse(absl::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!tokenizer.ok()) {
    ASYNCTLS_CHECK(!tokenizer.status().message().empty());
    return 0;
  }
  for (const char* text : {"", "Hello world 123\n", "a<|im_end|>b", "\u00e9\u65e5\u672c"}) {
    const auto ids = (*tokenizer)->Encode(text, true);
    if (!ids.ok()) continue;  // a vocabulary without some byte
    for (uint32_t id : *ids) ASYNCTLS_CHECK(id < (*tokenizer)->vocab_size());
    ASYNCTLS_CHECK((*tokenizer)->Decode(*ids, false).ok());
  }
  return 0;
}
