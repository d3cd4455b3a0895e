// SPDX-License-Identifier: Apache-2.0
// Splits text into the words that are merged one by one: Qwen2's pattern, written out by hand,
// because its look-ahead keeps it from automaton libraries and a backtracking one is quadratic on
// hostile input. Pure functions.
#pragma once

#include "absl/strings/string_view.h"
#include "engine/text/unicode.h"

namespace asynctls {

// The pattern that NextWord implements, as tokenizer.json spells it.
inline constexpr absl::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

// End of the word that starts at `p`, in a text that ends at `end`: what the pattern matches there,
// the leftmost alternative first, as HuggingFace does it. The words of a text cover it without
// gaps. A character is looked at a bounded number of times over all the words of a text.
// Requires: p < end, valid UTF-8.
const char* NextWord(const CharTable& table, const char* p, const char* end);

}  // namespace asynctls
