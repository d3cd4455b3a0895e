// SPDX-License-Identifier: Apache-2.0
#include "engine/text/chat_template.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/utf8.h"

namespace asynctls {
namespace {

constexpr char kTurnStart[] = "<|im_start|>";
constexpr char kTurnEnd[] = "<|im_end|>";
constexpr char kThinkStart[] = "<think>";
constexpr char kThinkEnd[] = "</think>";

// Builds the pieces; neighbouring text becomes one piece, because words may span the seam.
class PieceList {
 public:
  void Marker(absl::string_view text) { pieces_.push_back({true, std::string(text)}); }
  void Text(absl::string_view text) {
    if (text.empty()) return;
    if (pieces_.empty() || pieces_.back().marker) pieces_.push_back({false, ""});
    absl::StrAppend(&pieces_.back().text, text);
  }
  std::vector<ChatPiece> Take() && { return std::move(pieces_); }

 private:
  std::vector<ChatPiece> pieces_;
};

// An earlier reply without its thinking.
absl::string_view WithoutThinking(absl::string_view reply) {
  const size_t end = reply.rfind(kThinkEnd);
  if (end == reply.npos) return reply;
  reply.remove_prefix(end + sizeof(kThinkEnd) - 1);
  while (!reply.empty() && reply.front() == '\n') reply.remove_prefix(1);
  return reply;
}

}  // namespace

absl::StatusOr<std::vector<ChatPiece>> RenderChatPieces(absl::Span<const ChatTurn> messages,
                                                        const ChatOptions& options) {
  if (messages.empty()) return absl::InvalidArgumentError("messages: there must be at least one");
  PieceList pieces;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatTurn& message = messages[i];
    const bool reply = message.role == "assistant";
    if (!reply && message.role != "user" && message.role != "system") {
      return absl::InvalidArgumentError(absl::StrCat("messages[",
                                                     i,
                                                     "].role: must be system, user "
                                                     "or assistant"));
    }
    pieces.Marker(kTurnStart);
    pieces.Text(message.role);
    pieces.Text("\n");
    pieces.Text(reply ? WithoutThinking(message.content) : absl::string_view(message.content));
    pieces.Marker(kTurnEnd);
    pieces.Text("\n");
  }
  if (options.add_generation_prompt) {
    pieces.Marker(kTurnStart);
    pieces.Text("assistant\n");
    if (!options.enable_thinking) {
      pieces.Marker(kThinkStart);
      pieces.Text("\n\n");
      pieces.Marker(kThinkEnd);
      pieces.Text("\n\n");
    }
  }
  return std::move(pieces).Take();
}

absl::StatusOr<std::string> RenderChat(absl::Span<const ChatTurn> messages,
                                       const ChatOptions& options) {
  absl::StatusOr<std::vector<ChatPiece>> pieces = RenderChatPieces(messages, options);
  if (!pieces.ok()) return pieces.status();
  std::string text;
  for (const ChatPiece& piece : *pieces) text += piece.text;
  return text;
}

absl::StatusOr<std::vector<uint32_t>> EncodeChat(const Tokenizer& tokenizer,
                                                 absl::Span<const ChatTurn> messages,
                                                 const ChatOptions& options) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& content = messages[i].content;
    if (const size_t offset = FirstInvalidUtf8(content); offset != content.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("messages[", i, "].content: not UTF-8 at byte ", offset));
    }
  }
  absl::StatusOr<std::vector<ChatPiece>> pieces = RenderChatPieces(messages, options);
  if (!pieces.ok()) return pieces.status();
  std::vector<uint32_t> ids;
  for (const ChatPiece& piece : *pieces) {
    if (piece.marker) {
      const std::optional<uint32_t> id = tokenizer.IdOf(piece.text);
      if (!id.has_value()) {
        return absl::FailedPreconditionError(absl::StrCat(
            "the tokenizer has no token '", piece.text, "', which the chat template needs"));
      }
      ids.push_back(*id);
      continue;
    }
    absl::StatusOr<std::vector<uint32_t>> text = tokenizer.Encode(piece.text, false);
    if (!text.ok()) return text.status();
    ids.insert(ids.end(), text->begin(), text->end());
  }
  return ids;
}

}  // namespace asynctls
