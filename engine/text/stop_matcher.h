// SPDX-License-Identifier: Apache-2.0
// StopMatcher: lets streamed text through up to the first stop string, holding back only what could
// be the beginning of one. Which stop string ends a text, and where, does not depend on how the
// text was cut into pieces.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace asynctls {

// One per reply; one thread at a time.
class StopMatcher {
 public:
  // Requires: `stops` are not empty strings and are UTF-8 (so that what is held back begins at a
  // character). How many and how long is for the caller to limit.
  explicit StopMatcher(std::vector<std::string> stops);

  // Takes the next piece of the text and returns what may be shown now. The first stop string to
  // end wins; of those that end together, the longest. Text before it is returned, it and all text
  // after it are not. Time is linear in the text, times the number of stop strings.
  // Requires: UTF-8, whole characters.
  std::string Append(absl::string_view text);

  // What was held back, at the end of the text.
  std::string Flush();

  // The stop string found, if one was.
  const std::optional<std::string>& matched() const { return matched_; }

 private:
  // Knuth-Morris-Pratt, one byte at a time.
  struct Pattern {
    std::string text;
    std::vector<uint32_t> border;  // [i]: longest proper border of the first i bytes
    uint32_t length = 0;           // of the longest beginning of `text` that ends where we are
  };
  static void Advance(Pattern& pattern, char c);

  std::vector<Pattern> patterns_;
  std::string held_;  // the longest of the beginnings found
  std::optional<std::string> matched_;
};

}  // namespace asynctls
