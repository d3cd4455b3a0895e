// SPDX-License-Identifier: Apache-2.0
// Detokenizer: turns one reply's ids into text as they come, never half a character. The pieces in
// a row are what Tokenizer::Decode makes of all ids at once.
#pragma once

#include <cstdint>
#include <string>

#include "engine/text/tokenizer.h"

namespace asynctls {

// One per reply; one thread at a time.
class Detokenizer {
 public:
  // `tokenizer` outlives this.
  Detokenizer(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  // The text that became certain with `id`, often empty: up to 3 bytes of a character that may go
  // on are held back. Bytes that are no UTF-8 become U+FFFD. An id that is no token adds nothing (a
  // model's vocabulary may be padded beyond the tokenizer's).
  std::string Append(uint32_t id);

  // What was held back, as U+FFFD; then starts afresh.
  std::string Flush();

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_;
  std::string pending_;  // the beginning of a character
};

}  // namespace asynctls
