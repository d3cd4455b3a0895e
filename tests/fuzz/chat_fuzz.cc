// SPDX-License-Identifier: Apache-2.0
// Any chat: roles and contents are cut from the bytes at zeros. Refused, or rendered and encoded so
// that the ids spell the rendered text and contents never become special tokens.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "engine/base/check.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

namespace asynctls {
namespace {

const Tokenizer& DemoTokenizer() {
  static const auto* tokenizer = new absl::StatusOr<std::unique_ptr<Tokenizer>>(
      Tokenizer::Load(std::string(ASYNCTLS_SOURCE_DIR) +
                      "/deploy/models/demo-qwen3/tokenizer.json"));
  ASYNCTLS_CHECK(tokenizer->ok());
  return ***tokenizer;
}

size_t Specials(const std::vector<uint32_t>& ids) {
  size_t count = 0;
  for (uint32_t id : ids) count += DemoTokenizer().IsSpecial(id);
  return count;
}

void RunOne(absl::string_view bytes) {
  const std::vector<std::string> parts = absl::StrSplit(bytes, '\0');
  std::vector<ChatTurn> turns;
  for (size_t i = 1; i + 1 < parts.size(); i += 2) turns.push_back({parts[i], parts[i + 1]});
  ChatOptions options;
  options.add_generation_prompt = parts[0].size() % 2 == 0;
  options.enable_thinking = parts[0].size() % 3 == 0;
  const auto text = RenderChat(turns, options);
  const auto ids = EncodeChat(DemoTokenizer(), turns, options);
  if (!text.ok()) {
    ASYNCTLS_CHECK(!ids.ok());
    return;
  }
  if (!ids.ok()) return;  // not UTF-8
  // Contents are normalised (NFC), so the text is compared as its own ids.
  const auto plain = DemoTokenizer().Encode(*text, true);
  ASYNCTLS_CHECK(plain.ok() && Specials(*ids) <= Specials(*plain));
  size_t markers = 0;
  const auto pieces = RenderChatPieces(turns, options);
  for (const ChatPiece& piece : *pieces) markers += piece.marker;
  ASYNCTLS_CHECK(Specials(*ids) <= markers);
}

}  // namespace
}  // namespace asynctls

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  asynctls::RunOne(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
