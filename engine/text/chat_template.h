// SPDX-License-Identifier: Apache-2.0
// Qwen3's chat template for plain conversations (system, user, assistant), written out: no tools,
// and thinking of earlier turns is left out. As a text it is what HuggingFace renders; as ids the
// markers are special tokens and what people wrote never is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/text/tokenizer.h"

namespace asynctls {

struct ChatTurn {
  std::string role;  // system, user or assistant
  std::string content;
};

struct ChatOptions {
  bool add_generation_prompt = true;
  bool enable_thinking = true;
};

// A part of the prompt: a marker (exactly one token) or text between two markers.
struct ChatPiece {
  bool marker;
  std::string text;
};

// Errors: INVALID_ARGUMENT for no messages, or a role that is none of the three (names its index).
absl::StatusOr<std::vector<ChatPiece>> RenderChatPieces(absl::Span<const ChatTurn> messages,
                                                        const ChatOptions& options);

// The prompt as one text. Errors: as above.
absl::StatusOr<std::string> RenderChat(absl::Span<const ChatTurn> messages,
                                       const ChatOptions& options);

// The prompt as ids. They differ from Encode(RenderChat(..), true) only where a message contains
// the spelling of a special token, which stays text here. Errors: as above; INVALID_ARGUMENT for
// content that is not UTF-8 (names the message); FAILED_PRECONDITION if the vocabulary lacks a
// marker.
absl::StatusOr<std::vector<uint32_t>> EncodeChat(const Tokenizer& tokenizer,
                                                 absl::Span<const ChatTurn> messages,
                                                 const ChatOptions& options);

}  // namespace asynctls
