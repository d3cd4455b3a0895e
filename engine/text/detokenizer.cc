// SPDX-License-Identifier: Apache-2.0
#include "engine/text/detokenizer.h"

#include "engine/text/utf8.h"

namespace asynctls {

std::string Detokenizer::Append(uint32_t id) {
  std::string text;
  if (skip_special_ && tokenizer_.IsSpecial(id)) return text;
  const absl::string_view bytes = tokenizer_.BytesOf(id);
  pending_.append(bytes.data(), bytes.size());
  pending_.erase(0, AppendLossyUtf8(pending_, text));
  return text;
}

std::string Detokenizer::Flush() {
  std::string text;
  if (!pending_.empty()) text.assign(kReplacementCharacter.data(), kReplacementCharacter.size());
  pending_.clear();
  return text;
}

}  // namespace asynctls
